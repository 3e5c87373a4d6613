"""Attribution by unlearning: which training images is this generated picture made of?"""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
