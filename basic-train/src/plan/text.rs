//! Formats a plan as text for people to read.

use std::fmt;

use super::{Plan, memory::Memory};
use crate::recipe::{Mode, Shard};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<10} {:>16} {:>16}  how", "part", "parameters", "trained")?;
        for part in &self.parts {
            let how = match (part.mode, part.rank, part.bits) {
                (Mode::Frozen, ..) => "frozen".to_string(),
                (Mode::Full, ..) => "full".to_string(),
                (_, rank, None) => format!("lora of rank {}", rank.unwrap_or(0)),
                (_, rank, Some(bits)) => format!("lora of rank {} over {bits} bits", rank.unwrap_or(0)),
            };
            let rate = part.lr.map(|lr| format!(", lr {lr:e}")).unwrap_or_default();
            let (all, trained) = (grouped(part.parameters), grouped(part.trained));
            writeln!(f, "{:<10} {all:>16} {trained:>16}  {how}{rate}", part.part.name())?;
        }
        writeln!(f, "{:<10} {:>16} {:>16}  {}", "all", grouped(self.parameters), grouped(self.trained), self.dtype)?;
        writeln!(f)?;
        let number = |count: Option<u64>| count.map_or("?".into(), grouped);
        let load = &self.load;
        writeln!(f, "samples    {}", number(self.data.samples))?;
        let each = if self.devices > 1 { format!(" on each of {} devices", self.devices) } else { String::new() };
        let divided = match load.shard {
            Shard::None => "",
            Shard::Optimizer => ", which divide the optimizer's state",
            Shard::Gradients => ", which divide gradients and the optimizer's state",
        };
        writeln!(
            f,
            "steps      {} of {} samples, {} at once{each}{divided}",
            number(self.steps),
            self.batch_size,
            load.samples
        )?;
        let how = match self.data.measured {
            0 => "assumed".to_string(),
            count => format!("by {count} samples"),
        };
        let (mean, longest) = (self.data.mean.round(), self.data.longest);
        writeln!(
            f,
            "tokens     about {}: {mean} a sample ({how}; {} an image), {longest} at most",
            number(self.tokens),
            self.visual_tokens
        )?;
        writeln!(f)?;
        writeln!(f, "memory of {}, estimated, GiB", self.device)?;
        for (name, bytes) in self.memory.items().iter().filter(|(_, bytes)| *bytes > 0) {
            writeln!(f, "  {name:<22} {:>9.2}", gib(*bytes))?;
        }
        writeln!(f, "  {:<22} {:>9.2}", "total", gib(self.memory.total))?;
        let otherwise = if load.recompute { "without" } else { "with" };
        writeln!(f, "  {:<22} {:>9.2}", format!("{otherwise} recompute"), gib(self.memory_otherwise.total))?;
        if let (Some(budget), Some(fits)) = (&self.budget, self.fits) {
            let verdict = if fits { "it fits" } else { "it does not fit" };
            writeln!(f, "{verdict} {:.2} GiB ({})", gib(budget.bytes), budget.source)?;
        }
        if self.fits == Some(false) {
            writeln!(f, "smaller: {}", self.advice())?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

impl Plan {
    /// Ways to reduce the memory, the most effective first.
    pub fn advice(&self) -> String {
        let Memory { decoder_activations, gradients, moments, master_weights, .. } = self.memory;
        let trained = gradients + moments + master_weights;
        let mut ways = Vec::new();
        if !self.load.recompute && decoder_activations > self.memory.total / 10 {
            ways.push("train.recompute = true");
        }
        if self.load.samples > 1 && decoder_activations + self.memory.backward > self.memory.total / 10 {
            ways.push("a smaller train.micro_batch");
        }
        if self.load.element == 4 {
            ways.push("train.dtype = \"bfloat16\"");
        }
        if trained > self.memory.total / 3 {
            ways.push("parts.decoder.mode = \"lora\" or \"qlora\"");
        }
        if ways.is_empty() { "a smaller model".into() } else { ways.join(", ") }
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}

/// The number with its digits grouped in threes.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    groups.join(" ")
}
