"""Settings of the text encoders. Files of transformers hold many keys that belong to other models or to generation."""

from transformers import CLIPTextConfig, T5Config
from transformers.activations import ACT2FN

from latentrt.export.checkpoint.settings.table import Settings
from latentrt.export.checkpoint.settings.values import COUNT, POSITIVE, WHOLE, Values, only, optional

_NOTES = frozenset(
    {
        "architectures", "chunk_size_feed_forward", "dtype", "id2label", "is_encoder_decoder", "label2id",
        "output_hidden_states", "problem_type", "return_dict", "transformers_version",
    }
)  # fmt: skip

# Of older versions, of other heads and of generation; none is read by an encoder that gives its hidden states.
_RETIRED = frozenset(
    {
        "add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "cross_attention_hidden_size",
        "decoder_start_token_id", "diversity_penalty", "do_sample", "dropout", "early_stopping",
        "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
        "forced_eos_token_id", "gradient_checkpointing", "length_penalty", "max_length", "min_length", "model_type",
        "n_positions", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
        "output_attentions", "output_past", "output_scores", "prefix", "pruned_heads", "remove_invalid_values",
        "repetition_penalty", "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params",
        "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "top_k",
        "top_p", "torch_dtype", "torchscript", "typical_p", "use_bfloat16",
    }
)  # fmt: skip

_ACTIVATION = Values(lambda value: isinstance(value, str) and value in ACT2FN, "an activation of transformers")
_TOKEN = optional(COUNT)
_UNMASKED = only(None, False)


def _feeds(value: object) -> bool:
    *gate, act = value.split("-") if isinstance(value, str) else ("",)
    return act in ACT2FN and gate in ([], ["gated"])


CLIP_TEXT = Settings(
    kind=CLIPTextConfig,
    carried={
        "vocab_size": WHOLE,
        "hidden_size": WHOLE,
        "intermediate_size": WHOLE,
        "projection_dim": WHOLE,
        "num_hidden_layers": WHOLE,
        "num_attention_heads": WHOLE,
        "max_position_embeddings": WHOLE,
        "hidden_act": _ACTIVATION,
        "layer_norm_eps": POSITIVE,
        "eos_token_id": _TOKEN,
        "is_decoder": _UNMASKED,
        "use_attention_mask": _UNMASKED,  # pipelines of diffusers then hide the padding
    },
    idle=_NOTES | {"attention_dropout", "initializer_factor", "initializer_range", "bos_token_id", "pad_token_id"},
    retired=_RETIRED,
)

T5_ENCODER = Settings(
    kind=T5Config,
    carried={
        "vocab_size": WHOLE,
        "d_model": WHOLE,
        "d_kv": WHOLE,
        "d_ff": WHOLE,
        "num_layers": WHOLE,
        "num_heads": WHOLE,
        "relative_attention_num_buckets": WHOLE,
        "relative_attention_max_distance": WHOLE,
        "layer_norm_epsilon": POSITIVE,
        "feed_forward_proj": Values(_feeds, "an activation of transformers, or gated- and one"),
        "is_decoder": _UNMASKED,
    },
    idle=_NOTES
    | {
        "classifier_dropout", "dropout_rate", "eos_token_id", "initializer_factor", "num_decoder_layers",
        "pad_token_id", "use_cache",
    },
    retired=_RETIRED | {"dense_act_fn", "is_gated_act", "scale_decoder_outputs"},  # follow from others
)  # fmt: skip
