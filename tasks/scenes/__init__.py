"""Procedural photo-like scenes with exact truth."""

from pixelmill.tasks.scenes.render import Scene, render_scene
from pixelmill.tasks.scenes.setting import PLACES, SEMANTIC_CLASSES
from pixelmill.tasks.scenes.things import CLASSES
from pixelmill.tasks.scenes.write import scene_seed, write_scenes

__all__ = [
    "CLASSES",
    "PLACES",
    "SEMANTIC_CLASSES",
    "Scene",
    "render_scene",
    "scene_seed",
    "write_scenes",
]
