"""Options of this package's commands, written as keys and values in a study, as command lines that are checked at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_ext.errors import StudyError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable


class CommandLines:
    """Writes command lines, and knows the options of commands.

    Args:
        subcommand: finds the click command, or group of commands, of a subcommand by its name.
    """

    def __init__(self, subcommand: Callable[[str], Any]) -> None:
        self._subcommand = subcommand

    def write(
        self,
        path: tuple[str, ...],
        options: dict[str, Any],
        where: str,
        fixed: dict[str, Any],
        check: Callable[[dict[str, Any]], None] = lambda parameters: None,
    ) -> list[str]:
        """The arguments of `lm-eval-ext` for a subcommand, parsed once to find mistakes before anything runs.

        Args:
            path: subcommand and, in a group, its command: `("train", "mist")`.
            options: by any of their names, without the dashes at the front; true and false are for flags, a list is joined
                by commas or repeated, None is the default.
            where: place in the study, for messages.
            fixed: options that the study sets itself; they cannot be given. A key of `""` is the argument without a name.
            check: called with the parsed parameters; what it raises is reported as a mistake of the study.

        Raises:
            StudyError: an option that the command does not have, that the study sets, or a value that it refuses.
        """
        command = self._command(path)
        parameters = {
            _name(flag): parameter for parameter in command.params for flag in parameter.opts if flag.startswith("--")
        }
        set_by_study = {parameters[_name(key)].name for key in fixed if key}
        valid = [_name(_flag(p)) for p in command.params if _flag(p) and p.name not in {*set_by_study, "help"}]
        given = {_name(key): value for key, value in options.items()}
        for key in given:
            if key not in parameters:
                raise StudyError(f"{where}: unknown option {key!r}; valid: {', '.join(valid)}")
            if parameters[key].name in set_by_study:
                raise StudyError(f"{where}: {key} is set by the study itself; leave it out")
        arguments = [*path]
        for key, value in {**given, **{_name(key): value for key, value in fixed.items() if key}}.items():
            arguments += _rendered(parameters[key], value, f"{where}: {key}")
        if "" in fixed:
            arguments.append(str(fixed[""]))
        try:
            check(command.make_context(" ".join(path), arguments[len(path) :]).params)
        except _click_mistake() as error:
            raise StudyError(f"{where}: {error.format_message()}") from None
        except UserError as error:
            raise StudyError(f"{where}: {error}") from None
        return arguments

    def has_option(self, path: tuple[str, ...], name: str) -> bool:
        """Whether a command takes an option."""
        return any(_name(flag) == _name(name) for parameter in self._command(path).params for flag in parameter.opts)

    def _command(self, path: tuple[str, ...]) -> Any:
        command = self._subcommand(path[0])
        for name in path[1:]:
            command = command.commands[name]
        return command


def _name(option: str) -> str:
    return option.strip().lstrip("-").replace("_", "-")


def _rendered(parameter: Any, value: Any, where: str) -> list[str]:
    if value is None:
        return []
    flag = _flag(parameter)
    if isinstance(value, bool):
        if not parameter.is_flag:
            raise StudyError(f"{where} is {str(value).lower()}: it takes a value (quote a language code such as 'no')")
        return [flag] if value else list(parameter.secondary_opts[:1])
    if parameter.is_flag:
        raise StudyError(f"{where} is {value!r}: it is true or false")
    if isinstance(value, (list, tuple)):
        words = [str(item) for item in value]
        return [part for word in words for part in (flag, word)] if parameter.multiple else [flag, ",".join(words)]
    if not isinstance(value, (str, int, float)):
        raise StudyError(f"{where} is {value!r}: it is a text, a number or a list")
    return [flag, str(value)]


def _flag(parameter: Any) -> str:
    """The first long name of an option; empty for an argument."""
    return next((flag for flag in parameter.opts if flag.startswith("--")), "")


def _click_mistake() -> Any:
    """What click raises for an option that does not fit: of the click that typer uses, which may be its own."""
    import typer

    return typer.BadParameter.__mro__[1]
