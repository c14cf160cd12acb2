"""Where in a graph less precision is safe, found by what nodes do and not by their names.

trunk       convolutions, and what activates, adds and hands on values between them
attention   nodes between two convolutions that do more than that, and these convolutions
decoding    nodes behind the last convolutions: distributions to boxes, boxes to pixels
"""

from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto

from export.precision.graph import Wires, key

# Between convolutions these keep the size of values, more or less.
ACTIVATIONS = frozenset({"Add", "Clip", "LeakyRelu", "Mul", "Relu", "Resize", "Sigmoid"})
# These only choose and order values, exactly so in any type.
MOVES = frozenset(
    {"Concat", "Flatten", "GatherElements", "Identity", "MaxPool", "ReduceMax", "Reshape"}
    | {"Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


@dataclass(frozen=True)
class Regions:
    """The nodes that give float32 values, each as `key` names it.

    Attributes:
        convolutions: of the trunk, the head's last ones among them.
        between: the trunk's other nodes.
        moves: the front of the decoding, which hands on what the trunk's convolutions give.
        attention: all of it, its convolutions and its sum with its own input among them.
        decoding: what remains.
    """

    convolutions: frozenset[str]
    between: frozenset[str]
    moves: frozenset[str]
    attention: frozenset[str]
    decoding: frozenset[str]


def find_regions(model: onnx.ModelProto) -> Regions:
    """Sorts the nodes of an optimised float32 graph, which stand in topological order."""
    wires = Wires(model)
    pieces = pieces_between_convolutions(wires)
    mappings = [piece for piece in pieces if not piece.plain and piece.consumers]

    borders = {name for piece in mappings for name in piece.convolutions}
    attention = borders.union(*(piece.nodes for piece in mappings))
    for piece in pieces:
        # Plain, but with attention on all sides, as where reduced values are stretched.
        if piece.plain and piece.consumers and piece.convolutions <= borders:
            attention |= piece.nodes
    attention |= {key(node) for node in wires.nodes if is_residual(node, attention, wires)}

    trunk = set().union(*(piece.nodes for piece in pieces if piece.plain)) - attention
    convolutions = {key(node) for node in wires.nodes if wires.is_convolution(node)} - attention
    decoding = {key(node) for node in wires.nodes} - trunk - convolutions - attention
    moves: set[str] = set()
    for node in wires.nodes:
        sources = {key(wires.producer[name]) for name in wires.taken(node)}
        if key(node) in decoding and node.op_type in MOVES and sources:
            moves |= {key(node)} if sources <= convolutions | moves else set()
    return Regions(*map(frozenset, (convolutions, trunk, moves, attention, decoding - moves)))


@dataclass(frozen=True)
class Piece:
    """Nodes that hang together without a convolution between them.

    Attributes:
        nodes: as `key` names them.
        plain: all of them are.
        convolutions: that give to them or take from them.
        consumers: those that take.
    """

    nodes: frozenset[str]
    plain: bool
    convolutions: frozenset[str]
    consumers: frozenset[str]


def pieces_between_convolutions(wires: Wires) -> list[Piece]:
    """Every node but the convolutions, in one piece each."""
    pieces: list[Piece] = []
    seen: set[str] = set()
    for start in wires.nodes:
        if key(start) in seen or wires.is_convolution(start):
            continue
        nodes, givers, takers = {key(start): start}, set[str](), set[str]()
        pending = [start]
        while pending:
            node = pending.pop()
            before = [wires.producer[name] for name in wires.taken(node)]
            after = [taker for name in node.output for taker in wires.consumers.get(name, [])]
            givers |= {key(neighbour) for neighbour in before if wires.is_convolution(neighbour)}
            takers |= {key(neighbour) for neighbour in after if wires.is_convolution(neighbour)}
            for neighbour in (*before, *after):
                if not wires.is_convolution(neighbour) and key(neighbour) not in nodes:
                    nodes[key(neighbour)] = neighbour
                    pending.append(neighbour)
        seen |= nodes.keys()
        plain = all(is_plain(neighbour, wires) for neighbour in nodes.values())
        pieces.append(Piece(frozenset(nodes), plain, frozenset(givers | takers), frozenset(takers)))
    return pieces


def is_plain(node: NodeProto, wires: Wires) -> bool:
    """Whether less precision serves it as well: values keep their size, or are an image's."""
    if node.op_type == "Cast":
        return wires.types.get(node.input[0]) == TensorProto.UINT8
    return node.op_type in ACTIVATIONS | MOVES


def is_residual(node: NodeProto, attention: set[str], wires: Wires) -> bool:
    """Whether a node adds what an attention took and what it gave."""
    if node.op_type != "Add" or key(node) in attention:
        return False
    attention_inputs = [
        name for name in wires.taken(node) if key(wires.producer[name]) in attention
    ]
    also_taken = [
        name
        for name in node.input
        if any(key(taker) in attention for taker in wires.consumers.get(name, []))
    ]
    return bool(attention_inputs and also_taken)
