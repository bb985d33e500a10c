"""All bad input that the command line is given, in groups."""

import bad_data
import bad_options
import bad_runs
import bad_weights
from front_door_case import Material  # noqa: F401  the schedule that runs the cases takes it from here

GROUPS = {
    "options": bad_options.OPTIONS,
    "recipes": bad_options.RECIPES,
    "reports": bad_runs.REPORTS,
    "metrics": bad_runs.METRICS,
    "telemetry": bad_runs.TELEMETRY,
    "places": bad_runs.PLACES,
    "weights": bad_weights.SAFETENSORS,
    "checkpoints": bad_weights.CHECKPOINTS,
    "idx": bad_data.IDX,
    "images": bad_data.IMAGES,
    "tables": bad_data.TABLES,
}
