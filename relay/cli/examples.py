"""Help that ends with examples."""

from typing import Any

import click


class ExampleCommand(click.Command):
    """A command whose help shows examples, line by line as they are written; click would wrap them into one."""

    def __init__(self, *args: Any, examples: tuple[str, ...], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the options."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


class ExampleGroup(ExampleCommand, click.Group):
    """A group whose help shows examples."""
