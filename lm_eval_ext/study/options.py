"""Options of this package's commands, written as keys and values in a study, as command lines that are checked at once."""

from __future__ import annotations

from typing import Any

from lm_eval_ext.errors import StudyError, UserError


def command_line(path: tuple[str, ...], options: dict[str, Any], where: str, fixed: dict[str, Any]) -> list[str]:
    """The arguments of `lm-eval-ext` for a subcommand, parsed once to find mistakes before anything runs.

    Args:
        path: subcommand and, in a group, its command: `("train", "mist")`.
        options: by their names, without the dashes at the front; true and false are for flags, a list is joined by commas
            or repeated, None is the default.
        where: place in the study, for messages.
        fixed: options that the study sets itself; they cannot be given. A key of `""` is the argument without a name.

    Raises:
        StudyError: an option that the command does not have, that the study sets, or a value that it refuses.
    """
    command = _command(path)
    known = {_name(opt): parameter for parameter in command.params for opt in parameter.opts if opt.startswith("--")}
    given = {_name(key): value for key, value in options.items()}
    own = {_name(key) for key in fixed}
    valid = [key for key in known if key not in own and key != "help"]
    for key in given:
        if key in own:
            raise StudyError(f"{where}: {key} is set by the study itself; leave it out")
        if key not in known:
            raise StudyError(f"{where}: unknown option {key!r}; valid: {', '.join(valid)}")
    arguments = [*path]
    for key, value in {**given, **{_name(key): value for key, value in fixed.items() if key}}.items():
        arguments += _rendered(known[key], value, f"{where}: {key}")
    if "" in fixed:
        arguments.append(str(fixed[""]))
    _parse(command, path, arguments[len(path) :], where)
    return arguments


def has_option(path: tuple[str, ...], name: str) -> bool:
    """Whether a command takes an option."""
    return any(_name(opt) == _name(name) for parameter in _command(path).params for opt in parameter.opts)


def _command(path: tuple[str, ...]) -> Any:
    from lm_eval_ext import cli

    command = cli.subcommand(path[0])
    for name in path[1:]:
        command = command.commands[name]
    return command


def _name(option: str) -> str:
    return option.strip().lstrip("-").replace("_", "-")


def _rendered(parameter: Any, value: Any, where: str) -> list[str]:
    if value is None:
        return []
    flag = max(parameter.opts, key=len)
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


def _parse(command: Any, path: tuple[str, ...], arguments: list[str], where: str) -> None:
    import typer

    # Of the click that typer uses, which may be its own.
    mistake: Any = typer.BadParameter.__mro__[1]
    try:
        parameters = command.make_context(" ".join(path), list(arguments)).params
        if path[0] == "train":
            from lm_eval_ext.training.settings import Clo, Midalign, Mist, SftEn

            methods = {kind.method: kind for kind in (SftEn, Mist, Midalign, Clo)}
            methods[path[1]](**parameters).codes()
    except mistake as error:
        raise StudyError(f"{where}: {error.format_message()}") from None
    except UserError as error:
        raise StudyError(f"{where}: {error}") from None
