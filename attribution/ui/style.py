"""How the page looks: a theme of system fonts and one accent colour, and what the theme cannot say."""

import gradio as gr

SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")

THEME = gr.themes.Base(primary_hue="orange", neutral_hue="stone", font=SANS, font_mono=MONO, radius_size="md").set(
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
    button_primary_text_color="white",
    block_label_text_color="*neutral_600",
)

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto; }
"""
