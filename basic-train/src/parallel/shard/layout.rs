//! Lays a module's trained parameters out in flat buckets, of which every rank owns an equal part.

use std::collections::BTreeMap;
use std::ops::Range;

use basic_models::checkpoint::ParamPath;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, Device, Tensor};

/// Where the decoder's layers are in the model.
pub const LAYERS: &str = "language_model.layers.";

/// A trained parameter in its bucket.
#[derive(Debug, Clone)]
pub struct Member {
    /// The parameter's path.
    pub name: String,
    /// The parameter's id in the module.
    pub id: ParamId,
    /// Its shape.
    pub dims: Vec<usize>,
    /// Its number among the trained parameters, in the module's order.
    pub order: usize,
    /// Its elements in the bucket.
    pub range: Range<usize>,
}

/// The elements of a parameter that a rank owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The elements, of the flattened parameter; empty if the rank owns none.
    pub of: Range<usize>,
    /// The same elements in the rank's part of the bucket.
    pub at: Range<usize>,
}

/// Parameters that are reduced and gathered together.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// What it holds, such as `language_model.layers.3`.
    pub name: String,
    /// The number of the decoder's layer that it holds.
    pub layer: Option<usize>,
    /// The type of its parameters.
    pub dtype: DType,
    /// Where its parameters are.
    pub device: Device,
    /// Its parameters, in the module's order and without gaps.
    pub members: Vec<Member>,
    /// Its length, padding included: a multiple of the number of ranks.
    pub padded: usize,
}

/// The buckets of a module, in the order in which they are reduced: the decoder's layers from the last to the first,
/// then all others. It depends on the module's trained parameters and on the number of ranks alone, so it is the same on
/// all ranks.
#[derive(Debug, Clone)]
pub struct Layout {
    rank: usize,
    world: usize,
    buckets: Vec<Bucket>,
    members: usize,
}

impl Layout {
    /// The layout for a module, as rank `rank` of `world` sees it.
    pub fn of<M: Module>(module: &M, rank: usize, world: usize) -> Self {
        let mut collect = Collect { path: ParamPath::new(""), found: Vec::new(), at: BTreeMap::new(), members: 0 };
        module.visit(&mut collect);
        let Collect { found: mut buckets, members, .. } = collect;
        for bucket in &mut buckets {
            bucket.padded = bucket.elements().next_multiple_of(world.max(1));
        }
        // The sort is stable: what is not a layer stays in the module's order, behind the layers.
        buckets.sort_by_key(|bucket| bucket.layer.map_or((1, 0), |layer| (0, usize::MAX - layer)));
        Self { rank, world: world.max(1), buckets, members }
    }

    /// The buckets, in the order in which they are reduced.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The trained parameters, bucket by bucket.
    pub fn members(&self) -> impl Iterator<Item = (&Bucket, &Member)> {
        self.buckets.iter().flat_map(|bucket| bucket.members.iter().map(move |member| (bucket, member)))
    }

    /// The number of trained parameters.
    pub fn count(&self) -> usize {
        self.members
    }

    /// The number of elements of this rank's part of a bucket.
    pub fn part(&self, bucket: &Bucket) -> usize {
        bucket.padded / self.world
    }

    /// The elements of a parameter that this rank owns.
    pub fn piece(&self, bucket: &Bucket, member: &Member) -> Piece {
        let part = self.part(bucket);
        let own = self.rank * part..(self.rank + 1) * part;
        let (start, end) = (member.range.start.max(own.start), member.range.end.min(own.end));
        if start >= end {
            return Piece { of: 0..0, at: 0..0 };
        }
        let relative = |to: usize| start - to..end - to;
        Piece { of: relative(member.range.start), at: relative(own.start) }
    }
}

impl Bucket {
    /// The number of elements without padding.
    pub fn elements(&self) -> usize {
        self.members.last().map_or(0, |member| member.range.end)
    }
}

/// The bucket of the parameter with this path: each layer of the decoder or of the vision encoder, the embedding table,
/// the output head with the norm before it, and otherwise the part of the model.
pub fn bucket_of(name: &str) -> &str {
    let layer = name.find(".layers.").map(|at| at + ".layers.".len());
    let end = layer.and_then(|start| name[start..].find('.').map(|length| start + length));
    if let Some(end) = end {
        return &name[..end];
    }
    if name.starts_with("language_model.norm.") {
        return "lm_head";
    }
    if name.starts_with("language_model.embed_tokens.") {
        return "language_model.embed_tokens";
    }
    name.split('.').next().unwrap_or(name)
}

struct Collect {
    path: ParamPath,
    found: Vec<Bucket>,
    /// The place of each bucket in `found`, by its name and by its type's name.
    at: BTreeMap<(String, String), usize>,
    members: usize,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, owner: &str) {
        self.path.enter(name, owner);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !param.is_require_grad() {
            return;
        }
        let value = param.val();
        let (dims, dtype, device) = (value.dims(), value.dtype(), value.device().without_autodiff());
        let name = self.path.slot(&dims).name;
        let of = bucket_of(&name).to_string();
        let found = &mut self.found;
        let at = *self.at.entry((of.clone(), format!("{dtype:?}"))).or_insert_with(|| {
            let layer = of.strip_prefix(LAYERS).and_then(|number| number.parse().ok());
            found.push(Bucket { name: of, layer, dtype, device, members: Vec::new(), padded: 0 });
            found.len() - 1
        });
        let start = found[at].elements();
        let range = start..start + value.shape().num_elements();
        found[at].members.push(Member { name, id: param.id, dims: dims.to_vec(), order: self.members, range });
        self.members += 1;
    }
}
