"""medtl backbones: what there is to transfer from."""

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list on stdout.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print docs/backbones.md on stdout.")
def backbones(as_json: bool, as_markdown: bool) -> None:
    """List the backbones: size, layer groups, input, weights, and whether those are on this machine."""
    import json

    from medtl.learning.catalogue import backbones_page, describe_backbones

    if as_json and as_markdown:
        raise click.UsageError("--json and --markdown exclude each other")
    if as_markdown:
        click.echo(backbones_page(), nl=False)
        return
    rows = describe_backbones()
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        size = "x".join(map(str, row["input_size"]))
        click.echo(
            f"{row['name']:<28} {row['spatial_dims']}D  {row['parameters'] / 1e6:5.1f} M  "
            f"{len(row['layer_groups']):>2} groups  {size}"
        )
        for weights in row["weights"]:
            state = "here" if weights["present"] else "absent"
            click.echo(f"    {weights['name']:<14} {state:<7} {weights['file']} ({weights['licence']})")
