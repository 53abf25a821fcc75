"""The smallest useful project: any device, counted per ten seconds. What `headrace init DIR` makes."""

from headrace.blueprints.spec import Blueprint, packaged_files

STARTER = Blueprint(name="starter", title="Any device", files=lambda: packaged_files("headrace.blueprints.starter"))
