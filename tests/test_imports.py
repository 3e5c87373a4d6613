"""The import table: a file imports only from files above it; heavy libraries stay in their rooms."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = (
    *("errors", "version", "files", "batches"),
    *("diffusion.tokens", "diffusion.words", "diffusion.pictures", "diffusion.fits", "diffusion.source"),
    *("diffusion.texts", "diffusion.tensors", "diffusion.networks", "diffusion.plain", "diffusion.captions"),
    *("diffusion.pipeline", "diffusion.memory"),
    *(
        "diffusion.weights",
        "diffusion.custom",
        "diffusion.inversion",
        "diffusion.lora",
        "diffusion.adapted",
        "diffusion.overlaid",
        "diffusion.noise",
        "diffusion.loss",
        "diffusion.attention",
    ),
    *("unlearning.gradients", "unlearning.ekfac", "unlearning.fisher", "unlearning.rise", "unlearning.step"),
    *("unlearning.removal",),
    *("unlearning.projection", "unlearning.signs", "unlearning.score", "unlearning.foreseen", "unlearning.race"),
    *("unlearning.schedules",),
    *("index.rows", "index.known", "index.folder", "index.captions", "index.table", "index.typed", "index.earlier"),
    *("index.data", "index.checksums", "index.towers", "index.features", "index.places", "index.lists"),
    *("index.manifest",),
    *("index.stored", "index.packed", "index.texts", "index.pictures", "index.work", "index.imported"),
    *("index.listed", "index.changes", "index.merged", "index.gradients", "index.steps", "index.found"),
    *("index.blocks", "index.build"),
    *("index.renewal", "index.update", "index.plan", "index.plan_update", "index.verify", "index.index"),
    *("index.nearest", "index.added"),
    *("index.crew", "index.worker", "index.cluster"),
    *("query.query", "query.regions", "query.evidence", "query.encoded"),
    *("query.labels", "query.prompts", "query.grounding", "query.detect"),
    *("methods.searched", "methods.answer", "methods.trak", "methods.influence", "methods.candidates"),
    *("methods.rehearsed", "methods.accepted", "methods.unlearning"),
    *("methods.features", "methods.pixel", "methods.chance", "methods", "methods.presets", "methods.budgets"),
    *("answers.forget", "answers.remove", "answers.compare", "answers.networks", "answers.ranking", "answers.plot"),
    *("answers.calibration", "answers.verdict", "answers.html", "answers.provenance", "answers.run", "answers.report"),
    *("answers.replay", "answers.kept", "answers.drawn", "answers.unrelated", "answers.floor", "answers.proof"),
    *("scenes.names", "scenes.compose", "scenes.world"),
    *("scenes.networks", "scenes.pictures", "scenes.truth", "scenes.judge", "scenes.trainer", "scenes.stages"),
    *("scenes.autoencoder", "scenes.denoiser", "scenes.train"),
    *("scenes.views", "scenes.nearest", "scenes.encoders", "scenes.looks", "scenes.customise", "scenes.mappers"),
    *("scenes.matching", "scenes.detected", "scenes.detector", "scenes.examples"),
    *("scenes.unrelated", "scenes.retraining", "scenes.proof", "scenes.finetune"),
    *("evaluate.arrays", "evaluate.queue", "evaluate.results", "evaluate.agreement", "evaluate.verdict"),
    *("evaluate.locality", "evaluate.tuning", "evaluate.retrain", "evaluate.scored", "evaluate.lds"),
    *("evaluate.controls", "evaluate.ablations", "evaluate.counterfactual"),
    *("evaluate.foreseen", "evaluate.left", "evaluate.proof", "evaluate.twice", "evaluate.steadiness"),
    *("evaluate.customised", "evaluate.candidates", "evaluate.retrieval", "evaluate.recalled", "evaluate.published"),
    *("evaluate.plots", "evaluate.machine", "evaluate.costs", "evaluate.recipe", "evaluate.stretched"),
    *("evaluate.growth", "evaluate.figures", "evaluate.findings", "evaluate.bench", "evaluate.rehearsal"),
    *("evaluate.lessons", "evaluate.distill", "evaluate.distilled"),
    *("ui.style", "ui.zero", "ui.jobs", "ui.regions", "ui.pace", "ui.studio", "ui.script"),
    *("ui.templates", "ui.words", "ui.again", "ui.answers", "ui.proof", "ui.layout", "ui.check"),
    *("ui.handlers", "ui.first", "ui.pictures", "ui.marks", "ui.answering", "ui.asking", "ui.checking", "ui.kept"),
    *("ui.api", "ui.previews", "ui.routes", "ui.page"),
    *(
        "cli.ending",
        "cli.parsing",
        "cli.asked",
        "cli.progress",
        "cli.stages",
        "cli.costs",
        "cli.scenes",
        "cli.index",
        "cli.generate",
    ),
    *("cli.attribute", "cli.detect", "cli.replay", "cli.floor", "cli.retraining", "cli.judging", "cli.evaluate"),
    *("cli.distill", "cli.bench", "cli.rehearse", "cli", "__main__", "app"),
)
PATHS = [*(ROOT / "attribution").rglob("*.py"), ROOT / "app.py"]
FILES = {str(p.relative_to(ROOT)).removeprefix("attribution/")[:-3].replace("/", "."): p for p in PATHS}
FILES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}
FILES = {name: path for name, path in FILES.items() if name in ROOMS or path.name != "__init__.py"}
ONLY_IN = {
    "diffusers": ("diffusion.networks", "diffusion.plain", "diffusion.pipeline", "scenes."),
    "transformers": ("diffusion.networks", "diffusion.pipeline", "index.features", "query.grounding", "scenes."),
    "groundingdino": ("query.grounding",),
    "gradio": ("app", "ui."),
    "ray": ("index.crew",),
    "faiss": ("index.lists",),
    "matplotlib": ("evaluate.plots",),
}


def imports(name):
    """Full names of what a file imports, inside functions too."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_file_has_its_place_in_the_table():
    assert set(FILES) == set(ROOMS)
    assert not [name for name in FILES if name.split(".")[-1] == "utils"]


def test_files_import_only_from_above():
    for name in ROOMS:
        above = [f"attribution.{room}" for room in ROOMS[: ROOMS.index(name)]]
        for imported in imports(name):
            own = imported.startswith(("attribution", "app"))
            assert not own or any(f"{imported}.".startswith(f"{room}.") for room in above), f"{name}: {imported}"


def test_heavy_libraries_stay_in_their_rooms():
    for name in ROOMS:
        for imported in imports(name):
            library = imported.split(".")[0]
            assert library not in ("pickle", "dill", "joblib", "cloudpickle"), f"{name}: {imported}"
            for heavy, rooms in ONLY_IN.items():
                assert not library.startswith(heavy) or name.startswith(rooms), f"{name}: {imported}"


def test_nothing_is_unpickled():
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if ast.unparse(node.func) == "torch.load":
                    assert keywords.get("weights_only") == "True", name
                assert keywords.get("allow_pickle", "False") == "False", name
