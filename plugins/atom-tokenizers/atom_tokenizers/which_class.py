"""Select the class as ``AutoTokenizer`` does: the one named in the files, or one for the model.

The tables are those of ``transformers``; a test compares them.
"""

from __future__ import annotations

from atom_tokenizers.classes import CLASSES

OBEDIENT = "TokenizersBackend"
"""The class that follows its ``tokenizer.json``; formerly ``PreTrainedTokenizerFast``."""

_OF_MODELS = {
    OBEDIENT: """
    EvollaModel arctic aria beam bigbird_pegasus camembertv2-base canary chatlm cohere_asr
    ernie4_5 ernie4_5_moe flex_olmo fuyu glm glm4 glm4_moe glm4_moe_lite glm4v glm4v_moe
    glm_image glmasr got_ocr2 gpt_bigcode gradium_phonon_tts granite granitemoe
    granitemoehybrid granitemoeshared h2ovl_chat hyperclovax hyperclovax_vlm internlm2
    internlm3 iquestcoder jamba kimi_k25 kimi_linear kosmos-2 llava llava_next mimo_v2_flash
    minicpm3 minicpm_ocr minicpmv minicpmv4_6 minicpmv4_7 minimax_m2 ministral ministral3
    mistral mistral3 mistral_large4 mixtral modernbert modernbert-decoder molmo molmo2
    nemo_speechlm nemotron nvfp4 nystromformer olmo2 olmo3 olmo_hybrid omniasr opencua
    openvla paddleocr_vl pegasus_x persimmon phi3 phi3_v phimoe pix2struct pixtral
    pocket_tts smolvlm stablelm step3_vl umt5 vipllava voxtral voxtral_realtime
    xlm-roberta-xl""",
    "GPT2Tokenizer": """
    blip-2 codegen dbrx emu3 gpt2 gpt_neo gptj hyperclovax_vision_v2 instructblip
    instructblipvideo jais2 opt phi starcoder2""",
    "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm",
    "GemmaTokenizer": """
    diffusion_gemma gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma
    shieldgemma2 t5gemma zaya""",
    "LlamaTokenizer": "idefics idefics2",
    "Qwen2Tokenizer": """
    audioflamingo3 colqwen2 cosmos3_omni dots3_note fun_asr_nano hunyuan_vl internvl
    lighton_ocr moss_transcribe_diarize ovis2 qianfan_ocr qwen2 qwen2_5_omni qwen2_5_vl
    qwen2_audio qwen2_moe qwen2_vl qwen3 qwen3_asr qwen3_moe qwen3_next qwen3_omni_moe
    qwen3_vl qwen3_vl_moe vibevoice""",
    "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen4_exp",
}
OF_MODELS = {model: name for name, models in _OF_MODELS.items() for model in models.split()}
"""The tokenizer class of a model, by the ``model_type`` of its ``config.json``."""

OVERRULED = {
    "hyperclovax_vision_v2", "qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp",
}  # fmt: skip
"""Model types with a fixed class, whatever their files name."""

BUILDERS = {
    "AlbertTokenizer", "BartTokenizer", "BarthezTokenizer", "BertTokenizer",
    "BigBirdTokenizer", "BlenderbotTokenizer", "CLIPTokenizer", "CamembertTokenizer",
    "CodeLlamaTokenizer", "CohereTokenizer", "DPRQuestionEncoderTokenizer",
    "DebertaTokenizer", "DebertaV2Tokenizer", "EsmcTokenizer", "FunnelTokenizer",
    "HerbertTokenizer", "LEDTokenizer", "LasrTokenizer", "LayoutLMv2Tokenizer",
    "LayoutLMv3Tokenizer", "LayoutXLMTokenizer", "LukeTokenizer", "LxmertTokenizer",
    "MBart50Tokenizer", "MBartTokenizer", "MPNetTokenizer", "MarkupLMTokenizer",
    "MobileBertTokenizer", "MvpTokenizer", "NllbTokenizer", "NougatTokenizer",
    "OpenAIGPTTokenizer", "PegasusTokenizer", "ReformerTokenizer", "RemBertTokenizer",
    "RoFormerTokenizer", "RobertaTokenizer", "SeamlessM4TTokenizer", "Siglip2Tokenizer",
    "SplinterTokenizer", "T5Tokenizer", "UdopTokenizer", "VideoPrismTokenizer",
    "WhisperTokenizer", "XGLMTokenizer", "XLMRobertaTokenizer", "XLNetTokenizer",
}  # fmt: skip
"""Other classes that build their own tokenizer, with results unknown to ATOM."""


def class_of(named: str | None, model_type: str | None, *, byte_level: bool) -> str | None:
    """Return the selected class, or None if nothing determines it.

    Args:
        named: in ``tokenizer_config.json``, or in ``config.json``.
        model_type: of ``config.json``.
        byte_level: whether there is a ``tokenizer.json`` with ``ByteLevel``.
    """
    own = OF_MODELS.get(model_type or "")
    if named is None:
        return own
    name = named.removesuffix("Fast")
    if own is not None and model_type in OVERRULED:
        return own
    if name == "LlamaTokenizer" and byte_level:
        return OBEDIENT
    if own == OBEDIENT and name in BUILDERS | CLASSES.keys():
        return OBEDIENT
    return named
