//! Processes that share the questions of a benchmark.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::BenchmarkError;

/// The processes of one evaluation, each with a model of its own. All make the same calls in the same order.
pub trait Peers: Sync {
    /// This process's number, from 0. The first one writes the files.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn world(&self) -> usize;

    /// Gives every process the bytes of all, by rank.
    ///
    /// # Errors
    ///
    /// Why the others cannot be reached.
    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, String>;
}

impl dyn Peers + '_ {
    /// Gives every process the values of all, by rank.
    pub(super) fn gather<M: Serialize, T: DeserializeOwned>(&self, mine: &M) -> Result<Vec<T>, BenchmarkError> {
        let wrong = |error: serde_json::Error| BenchmarkError::Peers(error.to_string());
        let all = self.gather_bytes(&serde_json::to_vec(mine).map_err(wrong)?).map_err(BenchmarkError::Peers)?;
        all.iter().map(|bytes| serde_json::from_slice(bytes).map_err(wrong)).collect()
    }
}
