"""Every recipe by its name, those for training first."""

from __future__ import annotations

from collections.abc import Mapping

from prismlab.data.recipe_list_base import Recipe
from prismlab.data.recipe_list_rl import RL
from prismlab.data.recipe_list_train import TRAIN

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in (*TRAIN, *RL)}
