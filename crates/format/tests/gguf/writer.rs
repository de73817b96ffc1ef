//! A writer of GGUF files, byte by byte, so that a file can lie.

/// Entries and tensors in the order they were put.
#[derive(Debug, Clone)]
pub struct Writer {
    entries: Vec<Vec<u8>>,
    tensors: Vec<Tensor>,
    /// Tensors start at multiples of it.
    pub alignment: usize,
}

#[derive(Debug, Clone)]
struct Tensor {
    name: String,
    /// The row's length first.
    dims: Vec<u64>,
    kind: u32,
    bytes: Vec<u8>,
}

pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q8_0: u32 = 8;

fn put_text(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.as_bytes());
}

impl Writer {
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
        }
    }

    /// An entry whose value is of the type with this number.
    pub fn value(&mut self, key: &str, kind: u32, value: &[u8]) {
        let mut entry = Vec::new();
        put_text(&mut entry, key);
        entry.extend(kind.to_le_bytes());
        entry.extend(value);
        self.entries.push(entry);
    }

    pub fn u32(&mut self, key: &str, value: u32) {
        self.value(key, 4, &value.to_le_bytes());
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.value(key, 6, &value.to_le_bytes());
    }

    pub fn flag(&mut self, key: &str, value: bool) {
        self.value(key, 7, &[value.into()]);
    }

    pub fn text(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        put_text(&mut bytes, value);
        self.value(key, 8, &bytes);
    }

    pub fn texts(&mut self, key: &str, values: &[&str]) {
        let mut bytes = list(8, values.len() as u64);
        for value in values {
            put_text(&mut bytes, value);
        }
        self.value(key, 9, &bytes);
    }

    pub fn i32s(&mut self, key: &str, values: &[i32]) {
        let mut bytes = list(5, values.len() as u64);
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.value(key, 9, &bytes);
    }

    /// Takes an entry out again.
    pub fn without(mut self, key: &str) -> Self {
        let mut start = Vec::new();
        put_text(&mut start, key);
        self.entries.retain(|entry| !entry.starts_with(&start));
        self
    }

    /// `dims`: the row's length first, as GGUF has them.
    pub fn tensor(&mut self, name: &str, dims: &[u64], kind: u32, bytes: Vec<u8>) {
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dims: dims.to_vec(),
            kind,
            bytes,
        });
    }

    pub fn f32s(&mut self, name: &str, dims: &[u64], values: &[f32]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        self.tensor(name, dims, F32, bytes.collect());
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.entries.len() as u64).to_le_bytes());
        file.extend(self.entries.concat());
        let mut offset = 0;
        for tensor in &self.tensors {
            put_text(&mut file, &tensor.name);
            file.extend((tensor.dims.len() as u32).to_le_bytes());
            file.extend(tensor.dims.iter().flat_map(|size| size.to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.bytes.len()).next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(self.alignment), 0);
            file.extend(&tensor.bytes);
        }
        file
    }
}

/// The beginning of a list's value.
pub fn list(kind: u32, count: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes
}

/// A LLaMA of one block with 2 query heads and 1 key head of width 4, and a byte-level BPE of eleven tokens. Every
/// tensor counts on from the one before it.
pub fn tiny() -> Writer {
    let mut file = Writer::new();
    file.text("general.architecture", "llama");
    file.u32("llama.block_count", 1);
    file.u32("llama.context_length", 64);
    file.u32("llama.embedding_length", 8);
    file.u32("llama.feed_forward_length", 6);
    file.u32("llama.attention.head_count", 2);
    file.u32("llama.attention.head_count_kv", 1);
    file.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    file.f32("llama.rope.freq_base", 5000.0);
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "smollm");
    let tokens = [
        "<|end|>",
        "<|start|>",
        "<|stop|>",
        "1",
        "2",
        "a",
        "b",
        "Ġ",
        "ab",
        "Ġab",
        "11",
    ];
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.i32s(
        "tokenizer.ggml.token_type",
        &[3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1],
    );
    file.texts("tokenizer.ggml.merges", &["a b", "Ġ ab", "1 1"]);
    file.u32("tokenizer.ggml.bos_token_id", 1);
    file.u32("tokenizer.ggml.eos_token_id", 2);
    file.u32("tokenizer.ggml.padding_token_id", 2);
    file.u32("tokenizer.ggml.unknown_token_id", 0);
    file.text("tokenizer.chat_template", "{{ messages }}");
    let mut next = 0;
    for (name, dims) in [
        ("token_embd.weight", &[8, 11][..]),
        ("blk.0.attn_norm.weight", &[8]),
        ("blk.0.attn_q.weight", &[8, 8]),
        ("blk.0.attn_k.weight", &[8, 4]),
        ("blk.0.attn_v.weight", &[8, 4]),
        ("blk.0.attn_output.weight", &[8, 8]),
        ("blk.0.ffn_norm.weight", &[8]),
        ("blk.0.ffn_gate.weight", &[8, 6]),
        ("blk.0.ffn_up.weight", &[8, 6]),
        ("blk.0.ffn_down.weight", &[6, 8]),
        ("output_norm.weight", &[8]),
    ] {
        let count = dims.iter().product::<u64>() as usize;
        let values: Vec<f32> = (next..next + count).map(|i| i as f32 / 8.0).collect();
        next += count;
        file.f32s(name, dims, &values);
    }
    file
}
