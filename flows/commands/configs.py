"""config list, config show, config check."""

from typing import Annotated

from cyclopts import Parameter

from pixelmill.configs.load import TRAIN_PRESETS, find_config, list_presets, load_config
from pixelmill.flows.commands.running import ExitCode

__all__ = ["config_check", "config_list", "config_show"]


def config_list() -> ExitCode:
    """List the presets, with the first line of each.

    Example: pixelmill config list
    """
    for name in list_presets():
        print(f"{name:12} {load_config(name).description}")
    for name in list_presets(TRAIN_PRESETS):
        print(f"{name:12} (pixelmill train {name})")
    return ExitCode.COMPLETE


def config_show(
    config: Annotated[str, Parameter(help="A preset's name, or a YAML file.")], /
) -> ExitCode:
    """Print a configuration with every default filled in.

    Example: pixelmill config show demo
    """
    import yaml

    document = load_config(config).model_dump(mode="json")
    print(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), end="")
    return ExitCode.COMPLETE


def config_check(
    config: Annotated[str, Parameter(help="A preset's name, or a YAML file.")], /
) -> ExitCode:
    """Find every fault of a configuration.

    Example: pixelmill config check mine.yaml
    """
    load_config(config)
    print(f"{find_config(config)} is sound")
    return ExitCode.COMPLETE
