"""The lines of `tessera explain` that say what was drawn for one image."""

from rich.text import Text
from typing_extensions import assert_never

from pipeline.pretext.context import ContextDraws
from pipeline.pretext.jigsaw import Foreign, JigsawDraws
from pipeline.pretext.multitask import AnyDraws
from pipeline.pretext.rotation import RotationDraws
from pipeline.pretext.supervised import SupervisedDraws


def draw_lines(task: str, draws: AnyDraws) -> list[Text]:
    """Write what one task drew; its name stands above where there are several."""
    top, left, side = draws.crop
    mirrored = ", mirrored" if draws.mirrored else ""
    lines = [Text(task, "bold")] if task else []
    lines.append(Text(f"crop top {top} left {left} side {side}{_color(draws)}{mirrored}"))
    if len(draws.tiles) > 1:
        lines.append(_line("tiles", [f"{y},{x}" for y, x in draws.tiles]))
    if len(set(draws.colors)) > 1:
        lines.append(_line("colors", draws.colors))
    if draws.shifts:
        shifts = ["/".join(f"{y},{x}" for y, x in tile) for tile in draws.shifts]
        lines.append(_line("shifts of red/green/blue", shifts))
    if draws.intensity:
        lines.append(_line("intensity", ["/".join(map(str, tile)) for tile in draws.intensity]))
    if draws.sides:
        lines.append(_line("sides", list(map(str, draws.sides))))
    if draws.noise:
        lines.append(_line("noise", [f"{y},{x}" for y, x in draws.noise]))
    return lines + _asked(draws)


def _color(draws: AnyDraws) -> str:
    if len(set(draws.colors)) > 1:
        return ""
    return ", " + {"rgb": "color"}.get(draws.colors[0], draws.colors[0])


def _asked(draws: AnyDraws) -> list[Text]:
    match draws:
        case JigsawDraws():
            lines = [_line("permutations", list(map(str, draws.permutations)))]
            if any(draws.foreign):
                lines.append(_line("foreign", [_foreign(puzzle) for puzzle in draws.foreign]))
            return lines
        case ContextDraws():
            pairs = [f"{p.first + 1}>{p.second + 1}:{p.direction}" for p in draws.pairs]
            return [_line("pairs", pairs)]
        case RotationDraws():
            return [_line("turns", list(map(str, draws.turns)))]
        case SupervisedDraws():
            return [_line("class", [str(draws.taught) if draws.taught >= 0 else "not taught"])]
        case _:
            assert_never(draws)


def _foreign(puzzle: tuple[Foreign, ...]) -> str:
    return "+".join(f"{one.place + 1}<{one.position}.{one.tile + 1}" for one in puzzle) or "-"


def _line(name: str, words: list[str] | tuple[str, ...]) -> Text:
    return Text.assemble((f"{name} ", "dim"), " ".join(words))
