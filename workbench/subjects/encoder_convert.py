"""How BERT, RoBERTa, DistilBERT and MPNet checkpoints become an `Encoder`."""

from __future__ import annotations

from typing import Any

from workbench.errors import UserError
from workbench.subjects.architecture import Architecture, activation_named
from workbench.subjects.encoder import Encoder, EncoderArchitecture
from workbench.subjects.towers_convert import Family, State, block_names

EMBEDDINGS = {
    "embeddings.word_embeddings": "embed",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.token_type_embeddings": "token_type_embed",
    "embeddings.LayerNorm": "ln_pre",
    "embeddings.position_ids": "",
    "embeddings.token_type_ids": "",
}
FEED_FORWARD = {
    "intermediate.dense": "mlp.inner",
    "output.dense": "mlp.outer",
    "output.LayerNorm": "ln2",
}
BERT_BLOCK = block_names(
    "encoder.layer.#",
    {
        "attention.self.query": "attn.q",
        "attention.self.key": "attn.k",
        "attention.self.value": "attn.v",
        "attention.output.dense": "attn.o",
        "attention.output.LayerNorm": "ln1",
        **FEED_FORWARD,
    },
)
BERT_NAMES = {
    **EMBEDDINGS,
    **BERT_BLOCK,
    "pooler.dense": "",  # reads a sentence's first token for next-sentence prediction; not part of the output
    "cls.predictions.transform.dense": "mlm_dense",
    "cls.predictions.transform.LayerNorm": "mlm_ln",
    "cls.predictions.decoder": "unembed",
    "cls.predictions.bias": "",  # the decoder's own bias under a second name
    "cls.seq_relationship": "",
}
ROBERTA_HEAD = {
    "pooler.dense": "",
    "lm_head.dense": "mlm_dense",
    "lm_head.layer_norm": "mlm_ln",
    "lm_head.decoder": "unembed",
    "lm_head.bias": "",
}
DISTILBERT_NAMES = {
    **EMBEDDINGS,
    **block_names(
        "transformer.layer.#",
        {
            "attention.q_lin": "attn.q",
            "attention.k_lin": "attn.k",
            "attention.v_lin": "attn.v",
            "attention.out_lin": "attn.o",
            "sa_layer_norm": "ln1",
            "ffn.lin1": "mlp.inner",
            "ffn.lin2": "mlp.outer",
            "output_layer_norm": "ln2",
        },
    ),
    "vocab_transform": "mlm_dense",
    "vocab_layer_norm": "mlm_ln",
    "vocab_projector": "unembed",
}
MPNET_NAMES = {
    **EMBEDDINGS,
    **block_names(
        "encoder.layer.#",
        {
            "attention.attn.q": "attn.q",
            "attention.attn.k": "attn.k",
            "attention.attn.v": "attn.v",
            "attention.attn.o": "attn.o",
            "attention.LayerNorm": "ln1",
            **FEED_FORWARD,
        },
    ),
    **ROBERTA_HEAD,
    "encoder.relative_attention_bias": "distance_bias",
}


def post_norm(config: Any, model: str, epsilon: float | None = None) -> Architecture:
    """Return the stack that a BERT-like configuration describes."""
    if getattr(config, "is_decoder", False):
        raise UserError(f"{model} is a decoder (is_decoder in its configuration): only encoders are read this way")
    kind = getattr(config, "position_embedding_type", None) or "absolute"
    if kind != "absolute":
        raise UserError(f"{model} has {kind!r} position embeddings; supported: 'absolute'")
    return Architecture(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        d_head=config.hidden_size // config.num_attention_heads,
        d_mlp=config.intermediate_size,
        norm="post",
        norm_epsilon=config.layer_norm_eps if epsilon is None else epsilon,
        activation=activation_named(config.hidden_act, model),
    )


def build_bert(config: Any, state: State, model: str) -> Encoder:
    """Make BERT's network; its head uses the MLP's activation."""
    stack = post_norm(config, model)
    return Encoder(
        EncoderArchitecture(
            stack,
            config.vocab_size,
            config.max_position_embeddings,
            n_token_types=config.type_vocab_size,
            masked_lm="unembed.weight" in state,
            head_activation=stack.activation,
        )
    )


def build_roberta(config: Any, state: State, model: str) -> Encoder:
    """Make RoBERTa's network; positions are counted from the padding token's id, and the head always uses GELU."""
    return Encoder(
        EncoderArchitecture(
            post_norm(config, model),
            config.vocab_size,
            config.max_position_embeddings,
            n_token_types=config.type_vocab_size,
            padding=config.pad_token_id,
            masked_lm="unembed.weight" in state,
        )
    )


def build_distilbert(config: Any, state: State, model: str) -> Encoder:
    """Make DistilBERT's network: no token types, and norms with an epsilon of 1e-12."""
    stack = Architecture(
        n_layers=config.n_layers,
        d_model=config.dim,
        n_heads=config.n_heads,
        d_head=config.dim // config.n_heads,
        d_mlp=config.hidden_dim,
        norm="post",
        norm_epsilon=1e-12,
        activation=activation_named(config.activation, model),
    )
    return Encoder(
        EncoderArchitecture(
            stack,
            config.vocab_size,
            config.max_position_embeddings,
            masked_lm="unembed.weight" in state,
            head_activation=stack.activation,
        )
    )


def build_mpnet(config: Any, state: State, model: str) -> Encoder:
    """Make MPNet's network: scores carry a bias by distance, positions are counted from 1, the head uses GELU."""
    return Encoder(
        EncoderArchitecture(
            post_norm(config, model),
            config.vocab_size,
            config.max_position_embeddings,
            padding=1,  # fixed in the library, whatever the configuration says
            n_distances=config.relative_attention_num_buckets,
            masked_lm="unembed.weight" in state,
        )
    )


def masked_lm_family(base: str, prefix: str, names: dict[str, str], build: Any, *more_heads: str) -> Family:
    """Describe a family whose only head that we know is the masked language model's."""
    heads = (base.replace("Model", "ForMaskedLM"), *more_heads)
    return Family("text", base, names, build, heads=heads, prefixes=(f"{prefix}.",))


ENCODER_FAMILIES: dict[str, Family] = {
    "bert": masked_lm_family("BertModel", "bert", BERT_NAMES, build_bert, "BertForPreTraining"),
    "roberta": masked_lm_family("RobertaModel", "roberta", {**EMBEDDINGS, **BERT_BLOCK, **ROBERTA_HEAD}, build_roberta),
    "xlm-roberta": masked_lm_family(
        "XLMRobertaModel", "roberta", {**EMBEDDINGS, **BERT_BLOCK, **ROBERTA_HEAD}, build_roberta
    ),
    "camembert": masked_lm_family(
        "CamembertModel", "roberta", {**EMBEDDINGS, **BERT_BLOCK, **ROBERTA_HEAD}, build_roberta
    ),
    "distilbert": masked_lm_family("DistilBertModel", "distilbert", DISTILBERT_NAMES, build_distilbert),
    "mpnet": masked_lm_family("MPNetModel", "mpnet", MPNET_NAMES, build_mpnet),
}
