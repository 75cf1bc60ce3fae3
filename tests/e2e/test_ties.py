"""Models whose weights are tied: from the one name that stays, transformers finds all of them.

What a release cannot find it leaves on the meta device, or fills with random numbers. The same file runs under
transformers 4.57, which looks for the tied weights of encoders and decoders at one place only.
"""

import pytest
import torch
import transformers

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])

SEQ2SEQ = dict(
    vocab_size=64,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    max_position_embeddings=32,
)
T5 = dict(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4)
DECODER = dict(
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=32,
    tie_word_embeddings=True,
)

# The name that stays of each group of tied weights is not said here: whichever lets both releases load the model.
MODELS = {
    "M2M100ForConditionalGeneration": SEQ2SEQ,
    "MBartForConditionalGeneration": SEQ2SEQ,
    "MBartForSequenceClassification": SEQ2SEQ,
    "MBartModel": SEQ2SEQ,
    "BartForConditionalGeneration": SEQ2SEQ,
    "BartForSequenceClassification": SEQ2SEQ,
    "PLBartForConditionalGeneration": SEQ2SEQ,
    "PegasusForConditionalGeneration": SEQ2SEQ,
    "BigBirdPegasusForConditionalGeneration": SEQ2SEQ,
    "NllbMoeForConditionalGeneration": SEQ2SEQ
    | {"num_experts": 2, "encoder_sparse_step": 0, "decoder_sparse_step": 0},
    "MarianMTModel": SEQ2SEQ | {"pad_token_id": 0},
    "T5ForConditionalGeneration": T5,
    "LongT5ForConditionalGeneration": T5,
    "GPTNeoXForCausalLM": DECODER,
    "BertForMaskedLM": DECODER,
    "RobertaForMaskedLM": DECODER,
}


def build(name):
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**MODELS[name], architectures=[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.1)
    return model


def outputs(model):
    inputs = {"input_ids": TOKENS}
    if model.config.is_encoder_decoder and "SequenceClassification" not in type(model).__name__:
        inputs["decoder_input_ids"] = TOKENS[:, :4]
    if "SequenceClassification" in type(model).__name__:
        inputs["input_ids"] = torch.tensor([[3, 1, 4, model.config.eos_token_id]])
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("tied")
    for name in MODELS:
        model = build(name)
        model.config.save_pretrained(root / name)
        torch.save(model.state_dict(), root / name / "pytorch_model.bin")
    # The names that GPT-NeoX had when it was published.
    old = build("GPTNeoXForCausalLM").state_dict()
    old = {name.replace("lm_head", "embed_out"): tensor for name, tensor in old.items()}
    torch.save(old, root / "GPTNeoXForCausalLM" / "pytorch_model.bin")
    return root


@pytest.fixture(scope="module")
def mount(source, mounted):
    with mounted(source) as mount_point:
        yield mount_point


@pytest.mark.parametrize("name", MODELS)
def test_all_tied_weights_are_found(name, mount):
    saved = build(name)
    loaded = type(saved).from_pretrained(mount / name, use_safetensors=True).eval()
    wanted, found = saved.state_dict(), loaded.state_dict()
    assert found.keys() == wanted.keys()
    assert not [key for key, tensor in found.items() if tensor.device.type == "meta"]
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor), key
    assert torch.equal(outputs(loaded), outputs(saved))


@pytest.mark.parametrize("name", ["M2M100ForConditionalGeneration", "MBartForConditionalGeneration"])
def test_the_shared_embedding_stays(name, mount):
    tensors = {path.name for path in (mount / name / "model.tensors").iterdir()}
    assert "model.shared.weight" in tensors
    assert not {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"} & tensors
