//! Handles output heads that are the embedding table or should be: compares the configuration with the files.

use std::path::Path;

use super::CheckpointError;
use super::floats::{FloatType, decode};
use super::opened::Checkpoint;
use super::peft::AdapterFiles;
use super::read::{TensorFiles, VOCABULARY};
use super::source::{Entry, Stored};
use crate::config::LlavaConfig;

const TABLE: &str = VOCABULARY[0];
const HEAD: &str = VOCABULARY[1];

/// The number of elements that are compared at a time.
const BLOCK: usize = 1 << 20;

/// Gives the model a separate head if the configuration says that the head is the table but the files contain another
/// one, which is what transformers computes with. Returns sentences for the user.
///
/// # Errors
///
/// Returns I/O errors.
pub(super) fn untie(config: &mut LlavaConfig, files: &TensorFiles, dir: &Path) -> Result<Vec<String>, CheckpointError> {
    if !config.tied() || same(files, files)? {
        return Ok(Vec::new());
    }
    apart(config);
    Ok(vec![format!(
        "{}: config.json ties the head to the embedding table (tie_word_embeddings), and the files hold a lm_head.weight \
         that is another: it is used, and the model is untied",
        dir.display()
    )])
}

fn apart(config: &mut LlavaConfig) {
    config.tie_word_embeddings = false;
    config.text_config.tie_word_embeddings = false;
}

/// Whether the head in `heads` equals the table in `tables`, value by value; also true if one of them is absent.
fn same(tables: &TensorFiles, heads: &TensorFiles) -> Result<bool, CheckpointError> {
    let (Some(table), Some(head)) = (tables.entry(TABLE), heads.entry(HEAD)) else { return Ok(true) };
    let (Stored::Float(a), Stored::Float(b)) = (&table.dtype, &head.dtype) else { return Ok(false) };
    if table.shape != head.shape {
        return Ok(false);
    }
    let count: usize = table.shape.iter().product();
    for first in (0..count).step_by(BLOCK) {
        let count = BLOCK.min(count - first);
        if values(tables, table, *a, first, count)? != values(heads, head, *b, first, count)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The bits of some of a tensor's elements in f32, so that a NaN equals itself.
fn values(
    files: &TensorFiles,
    entry: &Entry,
    float: FloatType,
    first: usize,
    count: usize,
) -> Result<Vec<u32>, CheckpointError> {
    let some = Entry { start: entry.start + first * float.size(), bytes: count * float.size(), ..entry.clone() };
    let mut bits = Vec::with_capacity(count);
    files.windows(&some, float.size(), &mut |bytes| {
        let mut block = vec![0.0f32; bytes.len() / float.size()];
        decode(bytes, float, &mut block);
        // Both zeros are the same number.
        bits.extend(block.iter().map(|value| if *value == 0.0 { 0 } else { value.to_bits() }));
        Ok(())
    })?;
    Ok(bits)
}

impl Checkpoint {
    /// Adds adapters to the files. If they train the table or the head of a model that has one matrix for both, the
    /// model has two from then on, as with PEFT, which trains a copy. The exceptions: both were saved and are equal, or
    /// the adapters say that the two stay tied.
    pub(super) fn lay(&mut self, mut adapters: AdapterFiles) -> Result<(), CheckpointError> {
        let (table, head) = (adapters.whole.contains(TABLE), adapters.whole.contains(HEAD));
        let factors = adapters.has_factors("lm_head");
        if self.config.tied() && (table || head || factors) {
            let one = !factors
                && match (table, head) {
                    (true, true) => same(&adapters.whole, &adapters.whole)?,
                    _ => adapters.keeps_tied(),
                };
            if one {
                if table {
                    adapters.forget(HEAD);
                } else {
                    adapters.rename(HEAD, TABLE);
                }
            } else {
                apart(&mut self.config);
                if let Some(base) = self.files.tensors.get(TABLE).cloned() {
                    self.files.tensors.insert(HEAD.into(), base);
                }
                self.warnings.push(format!(
                    "{}: the adapters train the embedding table or the head of a model that has one matrix for both: it \
                     has two from here on",
                    adapters.dir().display()
                ));
            }
        }
        self.files = adapters.over(std::mem::take(&mut self.files));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::checkpoint::Layout;

    fn check(head: Option<&[f32]>, top: bool, text: bool) -> (LlavaConfig, Vec<String>) {
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let (table, head) = (bytes(&[1.0, 0.0, f32::NAN, 4.0]), head.map(bytes));
        let view = |bytes| TensorView::new(Dtype::F32, vec![2, 2], bytes).unwrap();
        let head = head.iter().map(|head| ("lm_head.weight", view(head)));
        let tensors = head.chain([("model.language_model.embed_tokens.weight", view(&table))]);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
        let mut config = LlavaConfig { tie_word_embeddings: top, ..LlavaConfig::default() };
        config.text_config.tie_word_embeddings = text;
        let files = TensorFiles::open(dir.path(), Layout::Llava).unwrap();
        let said = untie(&mut config, &files, dir.path()).unwrap();
        (config, said)
    }

    #[test]
    fn a_head_that_differs_from_the_table_unties_and_an_equal_or_absent_one_does_not() {
        for (top, text) in [(true, false), (false, true), (true, true)] {
            let (config, said) = check(Some(&[1.0, 0.0, f32::NAN, 5.0]), top, text);
            assert!(!config.tied() && said.len() == 1 && said[0].contains("lm_head.weight"), "{said:?}");
            for head in [None, Some(&[1.0, -0.0, f32::NAN, 4.0][..])] {
                let (config, said) = check(head, top, text);
                assert!(config.tied() && said.is_empty(), "{said:?}");
            }
        }
        assert!(check(Some(&[0.0; 4]), false, false).1.is_empty(), "nothing is tied");
    }
}
