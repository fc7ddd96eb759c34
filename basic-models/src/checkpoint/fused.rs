//! Matrices that some families' checkpoints store as one and that are separate in the network.

use crate::parameters::Slot;

/// Each fused matrix, with the parts that its rows consist of, in order.
const FUSED: [(&str, &[&str]); 2] =
    [("qkv_proj", &["q_proj", "k_proj", "v_proj"]), ("gate_up_proj", &["gate_proj", "up_proj"])];

/// The location of a part: `prefix.part.rest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FusedPart {
    prefix: String,
    rest: String,
    fused: &'static str,
    parts: &'static [&'static str],
    /// The index of the part.
    pub index: usize,
}

impl FusedPart {
    /// The part that a parameter's name stands for, if it is one.
    pub fn of(name: &str) -> Option<Self> {
        // [.., module, "weight" or "bias"]
        let (path, rest) = name.rsplit_once('.')?;
        let (prefix, module) = path.rsplit_once('.')?;
        for (fused, parts) in FUSED {
            if let Some(index) = parts.iter().position(|part| *part == module) {
                return Some(Self { prefix: prefix.into(), rest: rest.into(), fused, parts, index });
            }
        }
        None
    }

    /// The name of the fused matrix.
    pub fn whole(&self) -> String {
        format!("{}.{}.{}", self.prefix, self.fused, self.rest)
    }

    /// The names of all parts, in order.
    pub fn all(&self) -> Vec<String> {
        self.parts.iter().map(|part| format!("{}.{part}.{}", self.prefix, self.rest)).collect()
    }

    /// The first row of this part and the number of rows of all parts, from the parts' shapes; `None` if
    /// `wanted` lacks a part.
    pub fn rows(&self, wanted: &dyn Fn(&str) -> Option<usize>) -> Option<(usize, usize)> {
        let rows: Vec<usize> = self.all().iter().map(|name| wanted(name)).collect::<Option<_>>()?;
        Some((rows[..self.index].iter().sum(), rows.iter().sum()))
    }
}

/// The slots of a checkpoint with fused matrices: each name with the slots whose rows it joins.
pub(super) fn join(slots: Vec<Slot>) -> Vec<(String, Vec<Slot>)> {
    let mut joined: Vec<(String, Vec<Slot>)> = Vec::new();
    for slot in slots {
        // The vision encoder's projections have the same names but are not fused.
        let part = FusedPart::of(&slot.name).filter(|_| slot.name.starts_with("language_model."));
        let name = part.map_or_else(|| slot.name.clone(), |part| part.whole());
        match joined.iter_mut().rev().take(FUSED_DISTANCE).find(|(known, _)| *known == name) {
            Some((_, parts)) => parts.push(slot),
            None => joined.push((name, vec![slot])),
        }
    }
    for (_, parts) in &mut joined {
        parts.sort_by_key(|slot| FusedPart::of(&slot.name).map(|part| part.index));
    }
    joined
}

/// How far back the other parts of a matrix are looked for: the parameters of a layer are close together.
const FUSED_DISTANCE: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str) -> Slot {
        Slot { name: name.into(), shape: vec![2, 3], transposed: true }
    }

    #[test]
    fn a_part_knows_its_rows_in_the_whole() {
        let part = FusedPart::of("language_model.layers.1.self_attn.k_proj.weight").unwrap();
        assert_eq!(part.whole(), "language_model.layers.1.self_attn.qkv_proj.weight");
        let rows = |name: &str| Some(if name.contains("q_proj") { 8 } else { 4 });
        assert_eq!(part.rows(&rows), Some((8, 16)));
        assert_eq!(part.rows(&|name: &str| (!name.contains("v_proj")).then_some(4)), None);
        let part = FusedPart::of("language_model.layers.1.mlp.up_proj.weight").unwrap();
        assert_eq!((part.whole().as_str(), part.index), ("language_model.layers.1.mlp.gate_up_proj.weight", 1));
        assert_eq!(FusedPart::of("language_model.layers.1.mlp.down_proj.weight"), None);
        assert_eq!(FusedPart::of("weight"), None);
    }

    #[test]
    fn only_the_decoders_parts_are_joined() {
        let names =
            ["language_model.layers.0.self_attn.", "language_model.layers.1.self_attn.", "vision_tower.self_attn."];
        let slots = names
            .iter()
            .flat_map(|p| ["q_proj", "k_proj", "v_proj", "o_proj"].map(|n| slot(&format!("{p}{n}.weight"))));
        let joined: Vec<(String, usize)> = join(slots.collect()).into_iter().map(|(n, s)| (n, s.len())).collect();
        let counts: Vec<usize> = joined.iter().map(|(_, n)| *n).collect();
        assert_eq!(counts, [3, 1, 3, 1, 1, 1, 1, 1]);
        assert_eq!(joined[2].0, "language_model.layers.1.self_attn.qkv_proj.weight");
    }
}
