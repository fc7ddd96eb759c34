//! How a run divides its work among several ranks.

use serde::{Deserialize, Serialize};

/// What each rank of a run holds a share of, instead of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shard {
    /// Nothing: every rank holds all gradients and all of the optimizer's state.
    None,
    /// The optimizer's state (ZeRO's stage 1).
    Optimizer,
    /// The optimizer's state and the gradients (ZeRO's stage 2).
    Gradients,
}

/// The recipe's table `parallel`. With one rank it has no effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParallelConfig {
    /// What is divided among the ranks; by default `gradients`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// The number of seconds that a rank waits for the others before it takes them for dead.
    pub timeout_s: u64,
}

impl Default for ParallelConfig {
    fn default() -> Self {
        Self { shard: None, timeout_s: 1800 }
    }
}

impl ParallelConfig {
    /// What is divided among so many ranks; nothing if there is one.
    pub fn shard(&self, ranks: usize) -> Shard {
        if ranks > 1 { self.shard.unwrap_or(Shard::Gradients) } else { Shard::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_divided_unless_the_recipe_says_otherwise_or_there_is_one_rank() {
        let of = |text: &str| toml::from_str::<ParallelConfig>(text);
        assert_eq!(of("").unwrap(), ParallelConfig::default());
        assert_eq!((of("").unwrap().shard(2), of("").unwrap().shard(1)), (Shard::Gradients, Shard::None));
        let optimizer = of("shard = \"optimizer\"\ntimeout_s = 60").unwrap();
        assert_eq!((optimizer.shard(8), optimizer.shard(1), optimizer.timeout_s), (Shard::Optimizer, Shard::None, 60));
        assert_eq!(of("shard = \"none\"").unwrap().shard(8), Shard::None);
        assert!(of("shard = \"parameters\"").unwrap_err().to_string().contains("`gradients`"));
        assert!(of("shards = \"none\"").unwrap_err().to_string().contains("unknown field `shards`"));
    }
}
