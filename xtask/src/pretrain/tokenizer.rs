//! The embedded model's tokenizer: byte-level BPE, trained on the corpus.

use super::{END, END_OF_TURN, START_OF_TURN};
use anyhow::{Error, Result, ensure};
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper, Tokenizer, TokenizerBuilder,
};

/// The most tokens; a multiple of 64.
const VOCAB: usize = 1536;

/// How a conversation is written.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
    {% endif %}";

/// tokenizer.json for these texts.
pub fn train<'a>(texts: impl Iterator<Item = &'a str> + Send) -> Result<String> {
    let specials = [END, START_OF_TURN, END_OF_TURN].map(|token| AddedToken::from(token, true));
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCAB)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(specials.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let bytes = ByteLevel::new(false, true, true);
    let mut builder = TokenizerBuilder::<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(BPE::default())
    .with_pre_tokenizer(Some(bytes.into()))
    .with_decoder(Some(bytes.into()))
    .build()
    .map_err(Error::from_boxed)?;
    builder
        .train(&mut trainer, texts)
        .map_err(Error::from_boxed)?;
    let tokenizer = Tokenizer::from(builder);
    let ModelWrapper::BPE(_) = tokenizer.get_model() else {
        anyhow::bail!("the trainer made another kind of model");
    };
    let size = tokenizer.get_vocab_size(true);
    ensure!(
        size == VOCAB,
        "the corpus gave {size} tokens, expected {VOCAB}"
    );
    let text = tokenizer.to_string(true).map_err(Error::from_boxed)?;
    Ok(text + "\n")
}

/// The number of tokens.
pub const fn vocab_size() -> usize {
    VOCAB
}

/// tokenizer_config.json.
pub fn config() -> Value {
    json!({
        "add_bos_token": false,
        "add_prefix_space": false,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": END,
        "model_max_length": super::start::POSITIONS,
        "pad_token": END,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}
