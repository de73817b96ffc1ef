//! What `fetch` needs of a GGUF file: typed metadata and dequantised tensors.

use anyhow::{Context, Result};
use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// An open GGUF file.
pub struct Gguf {
    content: Content,
    file: BufReader<File>,
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut file = BufReader::new(file);
        let content = Content::read(&mut file)?;
        Ok(Self { content, file })
    }

    fn value(&self, key: &str) -> Result<&Value> {
        self.content
            .metadata
            .get(key)
            .with_context(|| format!("the file lacks {key}"))
    }

    /// A count or an id.
    pub fn number(&self, key: &str) -> Result<usize> {
        Ok(usize::try_from(self.value(key)?.to_u64()?)?)
    }

    /// A real number, as the shortest decimal that gives the file's f32: 1e-5 and not 9.999999747378752e-6.
    pub fn real(&self, key: &str) -> Result<f64> {
        Ok(self.value(key)?.to_f32()?.to_string().parse()?)
    }

    pub fn string(&self, key: &str) -> Result<&str> {
        Ok(self.value(key)?.to_string()?)
    }

    pub fn strings(&self, key: &str) -> Result<Vec<&str>> {
        let values = self.value(key)?.to_vec()?;
        values
            .iter()
            .map(|value| Ok(value.to_string()?.as_str()))
            .collect()
    }

    pub fn integers(&self, key: &str) -> Result<Vec<i32>> {
        let values = self.value(key)?.to_vec()?;
        values.iter().map(|value| Ok(value.to_i32()?)).collect()
    }

    /// The names of all tensors, sorted.
    pub fn tensor_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.content.tensor_infos.keys().cloned().collect();
        names.sort();
        names
    }

    /// The values in f32 with the shape in PyTorch's order.
    pub fn tensor(&mut self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let tensor = self
            .content
            .tensor(&mut self.file, name, &Device::Cpu)?
            .dequantize(&Device::Cpu)?;
        Ok((tensor.dims().to_vec(), tensor.flatten_all()?.to_vec1()?))
    }
}
