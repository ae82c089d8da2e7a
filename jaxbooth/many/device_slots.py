"""What the devices hold of the subjects in the slots: states, captions and keys. Subjects enter and are taken out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxbooth.base.text_encoder import TextEmbeddings, TokenIds
from jaxbooth.distributed.arrays import put
from jaxbooth.sharding import BATCH_AXES, AnyMesh, batch_sharding
from jaxbooth.training.slots import SlotRows, SlotText
from jaxbooth.training.state import TrainState

AnyText = tuple[TextEmbeddings | TokenIds, TextEmbeddings | None]


class DeviceSlots:
    """The slots of a program.

    Args:
        example: the state of one subject, of which only shapes and dtypes count.

    Attributes:
        state: of every slot, (slots, ...).
    """

    def __init__(self, mesh: AnyMesh, slots: int, example: TrainState):
        self._mesh, self._slots = mesh, slots
        on_slots = batch_sharding(mesh)

        def zeros(leaf: Any) -> jax.Array:
            return jnp.zeros((slots, *leaf.shape), leaf.dtype)

        def insert(state: TrainState, one: TrainState, slot: jax.Array) -> TrainState:
            return jax.tree.map(lambda whole, part: whole.at[slot].set(part), state, one)

        self.state: TrainState = jax.jit(lambda: jax.tree.map(zeros, example), out_shardings=on_slots)()
        self._insert = jax.jit(insert, donate_argnums=0, out_shardings=on_slots)
        self._extract = jax.jit(lambda state, slot: jax.tree.map(lambda whole: whole[slot], state))
        self._text: Any = None
        self._keys = np.zeros((slots, 2), np.uint32)
        self._placed: tuple[SlotText, jax.Array] | None = None  # of both, on the devices

    def enter(self, slot: int, state: TrainState, text: AnyText, key: np.ndarray) -> None:
        """Puts a subject in a slot, in the place of another.

        Args:
            state: on the host.
            text: of its captions, on the host.
            key: of its seed.
        """
        self.state = self._insert(self.state, state, np.int32(slot))
        captions = len(jax.tree.leaves(text)[0])
        if self._text is None or captions > len(jax.tree.leaves(self._text)[0][0]):
            self._grow(text, 1 << (captions - 1).bit_length())
        jax.tree.map(lambda whole, part: copy_captions(whole[slot], part), self._text, text)
        self._keys[slot] = key
        self._placed = None

    def place_text(self) -> tuple[SlotText, jax.Array]:
        """Returns the captions of every slot, as many as any subject so far had or a few more, and all keys."""
        if self._placed is None:
            text, keys = put((self._text, self._keys), batch_sharding(self._mesh))
            self._placed = SlotText(*text), keys
        return self._placed

    def _grow(self, text: AnyText, captions: int) -> None:
        """Makes room for more captions in every slot: a power of two of them, so that few programs are compiled."""
        former = self._text
        self._text = jax.tree.map(lambda part: np.zeros((self._slots, captions, *part.shape[1:]), part.dtype), text)
        for slot in range(self._slots) if former is not None else ():
            jax.tree.map(lambda new, old, slot=slot: copy_captions(new[slot], old[slot]), self._text, former)

    def extract(self, slot: int) -> TrainState:
        """Returns the state of one slot, on the devices."""
        return self._extract(self.state, np.int32(slot))

    def place_rows(self, rows: SlotRows) -> SlotRows:
        """Puts the rows of a dispatch where their slots are."""
        return put(rows, NamedSharding(self._mesh, PartitionSpec(None, BATCH_AXES)))


def copy_captions(slot: np.ndarray, captions: np.ndarray) -> None:
    """Puts a subject's captions in its slot."""
    slot[: len(captions)] = captions
