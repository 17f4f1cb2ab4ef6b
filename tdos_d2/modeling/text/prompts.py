"""Text queries: known class names, the OOD word and learnable negatives, encoded by CLIP."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...errors import UserError
from ...ood_words import load_groups, prototypes
from ...value_checks import check_choice
from ..clip import END, START, TextEncoder, TextTower, build_clip, token_batch, tokenize
from ..registry import TEXT_REGISTRY
from ..regularization import References

logger = logging.getLogger(__name__)


@TEXT_REGISTRY.register()
class PromptedText(nn.Module):
    """N = K + 1 + M text embeddings of CLIP's frozen text encoder with learnable tokens.

    The prompt of a name is ``[start] [context] [name] [end]``, that of a negative
    ``[start] [context] [its own tokens] [end]``; all share the context. Unlike in the published
    code (defects 1, 3 and 4), the embedding is read at the end token, and every token has its
    position.

    Args:
        tower: CLIP's text encoder; it is frozen here and stays in eval mode.
        names: the K known classes and, last, the OOD word.
        context_length: learnable tokens before each name.
        num_negative: M.
        negative_length: learnable tokens of one negative.
        prompt_std: standard deviation of the initial learnable tokens.
        negative_words: words that initialise each of the M negatives (see ``words_to_tokens``);
            empty = at random.

    Attributes:
        generation: counter that increases whenever weights may have changed: with every load, move
            and change of mode. Cached embeddings are valid for one generation.

    Raises:
        UserError: a prompt is longer than the encoder's positional table.
    """

    @configurable
    def __init__(
        self,
        tower: TextTower,
        names: Sequence[str],
        *,
        context_length: int = 20,
        num_negative: int = 50,
        negative_length: int = 20,
        prompt_std: float = 0.02,
        negative_words: Sequence[Sequence[str]] = (),
    ) -> None:
        super().__init__()
        # Frozen, but in the graph, as gradients of context and negatives pass through it.
        self.tower = tower.requires_grad_(False)
        self.embed_dim = tower.embed_dim  # D
        # The published initialisation has std 1, about fifty times that of CLIP's token embeddings.
        self.context = nn.Parameter(prompt_std * torch.randn(context_length, tower.width))
        self.negatives = nn.Parameter(
            prompt_std * torch.randn(num_negative, negative_length, tower.width),
            requires_grad=num_negative > 0,  # without negatives it would get no gradient
        )
        if negative_words:
            start = torch.tensor([words_to_tokens(w, negative_length) for w in negative_words])
            self.negatives.data.copy_(tower.token_embedding.weight[start])
        tokens, end = token_batch(names)
        longest = context_length + max(
            tokens.shape[1], 2 + negative_length if num_negative else 0  # 2: start and end
        )
        if longest > tower.max_length:
            raise UserError(
                f"prompts of {longest} tokens, but this text encoder holds {tower.max_length}: "
                "lower MODEL.TDOS.CONTEXT_LENGTH or NEGATIVE_LENGTH, or shorten the class names"
            )
        # Not in checkpoints, which store the names as text.
        self.register_buffer("name_tokens", tokens, persistent=False)
        self.register_buffer("name_end", end, persistent=False)
        self.generation = 0
        self._kept: tuple[list[Tensor], Tensor] | None = None
        for part in self.modules():
            part.register_load_state_dict_post_hook(self._forget)  # also if loaded alone
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg, names: Sequence[str]) -> dict:
        node, prompts, encoder = cfg.MODEL.TDOS, cfg.MODEL.PROMPTS, cfg.MODEL.CLIP
        words = negative_groups(prompts.GROUPS, node.NUM_NEGATIVE) if starts_at_groups(cfg) else ()
        clip, _ = build_clip(encoder.NAME, encoder.WEIGHTS, encoder.ACTIVATION)
        return {
            "tower": TextTower(clip),
            "names": names,
            "context_length": node.CONTEXT_LENGTH,
            "num_negative": node.NUM_NEGATIVE,
            "negative_length": node.NEGATIVE_LENGTH,
            "prompt_std": node.PROMPT_STD,
            "negative_words": words,
        }

    def train(self, mode: bool = True) -> PromptedText:
        """Set the mode of all parts except the frozen encoder."""
        if mode != self.training:  # an evaluation sets the same mode again for each dataset
            self._forget()
        super().train(mode)
        self.tower.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PromptedText:
        self._forget()
        return super()._apply(fn, recurse)

    def _forget(self, *_: object) -> None:
        self._kept = None
        self.generation += 1

    def no_weight_decay(self) -> set[str]:
        """Parameters that are embeddings, which should not decay to 0."""
        return {"context", "negatives"}

    def build_references(self, cfg, names: Sequence[str]) -> References:
        """References of the language regularizer for the queries of ``names`` and negatives."""
        loaded, groups = bool(cfg.MODEL.CLIP.WEIGHTS), cfg.MODEL.PROMPTS.GROUPS
        if not loaded:
            logger.info(
                "the text encoder is random: MODEL.REG.LANGUAGE_WEIGHT and groups of OOD words "
                "tell text queries apart, but carry no language meaning"
            )
        # The list of words is read at the first training step, as inference needs none (defect 25).
        words = partial(negative_groups, groups, cfg.MODEL.TDOS.NUM_NEGATIVE)
        return partial(self._references, tuple(names), words, cfg.MODEL.REG.TEMPLATE, loaded)

    def _references(
        self,
        names: Sequence[str],
        groups: Callable[[], Sequence[Sequence[str]]],
        template: str,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        """Unit embeddings of the names' and word groups' texts, and the numbers of their queries.

        The texts have no learnable context, so that the targets are constant.
        """
        encode = TextEncoder(self.tower)
        references = encode([template.replace("{}", name) for name in names])
        if words := groups():
            # Random weights do not recur, so their embeddings are not cached on disk.
            weights = encode.weights_identity() if keep else None
            of_groups = prototypes(words, encode.array, template, weights=weights)
            references = torch.cat([references, references.new_tensor(of_groups)])
        return references, torch.arange(len(references))

    def forward(self) -> Tensor:
        """(N, D) embeddings, not normalised.

        Without gradients they are computed once, in full precision also under autocast, and cached.
        They are computed again after a load, a move, a change of mode and a call with gradients,
        and if the learnable tokens have other values. (Version counters of tensors do not suffice:
        a fused optimizer step does not increase them.)
        """
        if torch.is_grad_enabled():
            self._kept = None
            return self._encode()
        kept, learned = self._kept, (self.context, self.negatives)
        # In tracing by torch.export there are no values to compare.
        if kept is None or not (
            torch.compiler.is_compiling() or all(map(torch.equal, kept[0], learned))
        ):
            with torch.autocast(self.context.device.type, enabled=False):
                kept = self._kept = ([x.clone() for x in learned], self._encode())
        return kept[1]

    def _encode(self) -> Tensor:
        embedding = self.tower.token_embedding
        names = self._with_context(embedding(self.name_tokens))
        # The context precedes the name, which shifts its end token (defect 1).
        text = self.tower(names, self.name_end + len(self.context))
        if not len(self.negatives):
            return text
        # CLIP reads a text at its end token, which learnable tokens alone lack (defect 3).
        start, end = (
            embedding.weight[token].expand(len(self.negatives), 1, -1) for token in (START, END)
        )
        negatives = self._with_context(torch.cat([start, self.negatives, end], dim=1))
        # Negatives have one length, and end with the end token.
        last = torch.full((len(negatives),), negatives.shape[1] - 1, device=negatives.device)
        return torch.cat([text, self.tower(negatives, last)])

    def _with_context(self, tokens: Tensor) -> Tensor:
        """(n, L, C) token embeddings with the shared context behind the start token."""
        context = self.context.expand(len(tokens), -1, -1)
        return torch.cat([tokens[:, :1], context, tokens[:, 1:]], dim=1)


def words_to_tokens(words: Sequence[str], length: int) -> list[int]:
    """``length`` CLIP tokens that represent a group of words.

    They are the tokens of as many words as fit, evenly spaced over the group; remaining positions
    repeat these tokens from the start.
    """
    for count in range(min(len(words), length), 0, -1):
        chosen = [words[i * len(words) // count] for i in range(count)]
        tokens = [token for word in chosen for token in tokenize(word)]
        if len(tokens) <= length:
            break
    return [tokens[i % len(tokens)] for i in range(length)]


def starts_at_groups(cfg) -> bool:
    """Whether the words of ``MODEL.PROMPTS.GROUPS`` initialise the negatives.

    Raises:
        UserError: unknown ``MODEL.PROMPTS.INIT``.
    """
    check_choice("MODEL.PROMPTS.INIT", cfg.MODEL.PROMPTS.INIT, ("random", "group"))
    return cfg.MODEL.PROMPTS.INIT == "group"


def negative_groups(name_or_path: str, num_negative: int) -> list[list[str]]:
    """The words of each of the M negatives' groups; empty without a word list or negatives."""
    return load_groups(name_or_path, num_negative).groups if name_or_path and num_negative else []
