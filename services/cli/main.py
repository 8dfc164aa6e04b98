"""The entry point of `tapewatch`: whatever a user can mend ends a command in one sentence, never in a traceback.

Whatever it needs is imported late, the standard library too: Ctrl-C while it loads must end in order as well, and what
this module itself imports is loaded before `main` can see to that.
"""

import sys

_GROUPS = ("ingest", "dispatch", "scorer", "gateway", "model", "alerts", "lake")


def _command(arguments: list[str]) -> str:
    """What was called, without its options.

    >>> _command(["gateway", "serve"]), _command(["run", "--from", "x.csv"])
    ('tapewatch gateway serve', 'tapewatch run')
    """
    words = arguments[: 2 if arguments[:1] and arguments[0] in _GROUPS else 1]
    return " ".join(["tapewatch", *(word for word in words if not word.startswith("-"))])


def _sentences(error: Exception, command: str) -> list[str]:
    """What to tell the user, a line each; nothing when the error is a fault of ours."""
    if isinstance(error, ModuleNotFoundError):
        from services.cli.dependencies import missing_package

        needs = missing_package(error.name or "")
        return [] if needs is None else [f"{command} {needs}"]
    from pydantic import ValidationError

    from services.domain.errors import TapewatchError

    if isinstance(error, ValidationError):
        from services.runtime.settings import wrong_settings

        return [f"tapewatch: {sentence}" for sentence in wrong_settings(error)]
    if isinstance(error, TapewatchError):
        return [f"tapewatch: {error.message}"]
    if isinstance(error, OSError):
        named = error.strerror and error.filename
        return [f"tapewatch: {error.filename}: {error.strerror}" if named else f"tapewatch: {error}"]
    return []


def _exit_code(error: Exception) -> int:
    """Of an error that has its sentences."""
    from services.domain.errors import TapewatchError
    from services.runtime.exit_codes import EXIT_MISCONFIGURED

    if not isinstance(error, TapewatchError):
        return EXIT_MISCONFIGURED
    from services.runtime.errors import exit_code_of

    return exit_code_of(error)


def main() -> None:
    """Run the command."""
    try:
        from services.cli.commands import app

        app()
    except KeyboardInterrupt:
        from services.runtime.exit_codes import EXIT_INTERRUPTED

        raise SystemExit(EXIT_INTERRUPTED) from None
    except Exception as error:
        sentences = _sentences(error, _command(sys.argv[1:]))
        if not sentences:
            raise
        print("\n".join(sentences), file=sys.stderr)
        raise SystemExit(_exit_code(error)) from None


if __name__ == "__main__":
    main()
