//! Reduces the gradients of a backward pass bucket by bucket, while the pass still runs.

use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

use super::layout::{Bucket, Layout, Member};
use super::parts::Parts;
use crate::optim::GradientSink;
use crate::parallel::{Collective, CollectiveError};

/// The gradients of a step on their way to the ranks that own them.
///
/// In each pass every bucket is reduced once, in the layout's order, on every rank. A rank that has no gradient for a
/// parameter contributes zeros, also where its share of the batch is text only and another's is not. The whole gradients
/// of a bucket are dropped as soon as it is reduced; what stays is this rank's part of the sum, in f32.
pub struct Reducer<'a> {
    collective: &'a dyn Collective,
    layout: Layout,
    /// This pass's gradients, flattened, by the parameters' order.
    pending: Vec<Option<Tensor<1>>>,
    /// The first bucket that is not reduced yet in this pass.
    next: usize,
    /// This rank's part of each bucket, summed over the ranks and the passes.
    sums: Vec<Option<Tensor<1>>>,
    /// In how many passes this rank had a gradient, by the parameters' order.
    marks: Vec<f64>,
    /// Why the ranks could not go on; what follows is not reduced any more.
    failed: Option<CollectiveError>,
}

impl<'a> Reducer<'a> {
    /// A step without gradients.
    pub fn new(collective: &'a dyn Collective, layout: Layout) -> Self {
        Self {
            collective,
            pending: (0..layout.count()).map(|_| None).collect(),
            next: 0,
            sums: (0..layout.buckets().len()).map(|_| None).collect(),
            marks: vec![0.0; layout.count()],
            failed: None,
            layout,
        }
    }

    /// Reduces the buckets before `end` that this pass has not reduced yet.
    fn reduce_up_to(&mut self, end: usize) {
        while self.next < end && self.failed.is_none() {
            let bucket = &self.layout.buckets()[self.next];
            let whole = whole(bucket, &mut self.pending);
            match self.collective.reduce_scatter(whole) {
                Ok(part) => {
                    let sum = self.sums[self.next].take();
                    self.sums[self.next] = Some(match sum {
                        Some(sum) => sum + part,
                        None => part,
                    });
                    self.next += 1;
                }
                Err(error) => self.failed = Some(error),
            }
        }
    }

    /// Ends a pass, also one in which this rank had nothing to compute: reduces all buckets that are left.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`], also that of a bucket that was reduced earlier in the pass.
    pub fn end_pass(&mut self) -> Result<(), CollectiveError> {
        self.reduce_up_to(self.layout.buckets().len());
        self.next = 0;
        match self.failed.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// This rank's parts of the sums, after the last pass.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    pub fn finish(mut self) -> Result<Parts, CollectiveError> {
        self.collective.sum_f64(&mut self.marks)?;
        let present = self.marks.iter().map(|count| *count > 0.0).collect();
        Ok(Parts::new(self.layout, self.sums, present))
    }
}

impl GradientSink for Reducer<'_> {
    fn take<M: Module>(&mut self, _: &M, mut found: GradientsParams) {
        for (index, bucket) in self.layout.buckets().iter().enumerate() {
            for member in &bucket.members {
                let Some(grad) = flat(&mut found, member) else { continue };
                if index < self.next {
                    self.failed.get_or_insert(CollectiveError::Late { bucket: bucket.name.clone() });
                }
                self.marks[member.order] += 1.0;
                let held = &mut self.pending[member.order];
                // As `add_gradients` does: sums of 16-bit gradients are kept in f32.
                *held = Some(match held.take() {
                    Some(sum) => wide(sum) + wide(grad),
                    None => grad,
                });
            }
        }
    }

    fn layer_done(&mut self, layer: usize) {
        // The layers come first, from the last one; buckets of the same layer differ in type.
        let above = |bucket: &Bucket| bucket.layer.is_some_and(|of| of >= layer);
        self.reduce_up_to(self.layout.buckets().iter().take_while(|bucket| above(bucket)).count());
    }
}

fn wide(x: Tensor<1>) -> Tensor<1> {
    match x.dtype() {
        DType::BF16 | DType::F16 => x.cast(DType::F32),
        _ => x,
    }
}

/// Takes a parameter's gradient, flattened.
fn flat(grads: &mut GradientsParams, member: &Member) -> Option<Tensor<1>> {
    fn of<const D: usize>(grads: &mut GradientsParams, id: ParamId, n: usize) -> Option<Tensor<1>> {
        grads.remove::<D>(id).map(|grad| grad.reshape([n]))
    }
    let (id, n) = (member.id, member.range.len());
    match member.dims.len() {
        1 => of::<1>(grads, id, n),
        2 => of::<2>(grads, id, n),
        3 => of::<3>(grads, id, n),
        4 => of::<4>(grads, id, n),
        5 => of::<5>(grads, id, n),
        _ => of::<6>(grads, id, n),
    }
}

/// A bucket's gradients in f32, with zeros for the padding and for parameters without one. They are joined in their own
/// type where they have the same, so that only one copy in f32 is made.
fn whole(bucket: &Bucket, pending: &mut [Option<Tensor<1>>]) -> Tensor<1> {
    let taken: Vec<Option<Tensor<1>>> = bucket.members.iter().map(|member| pending[member.order].take()).collect();
    let mut types = taken.iter().flatten().map(Tensor::dtype);
    let first = types.next().unwrap_or(DType::F32);
    let dtype = if types.all(|other| other == first) { first } else { DType::F32 };
    let zeros = |n: usize| Tensor::<1>::zeros([n], (&bucket.device, dtype));
    let mut joined = Vec::with_capacity(taken.len() + 1);
    let mut empty = 0;
    for (member, grad) in bucket.members.iter().zip(taken) {
        match grad {
            None => empty += member.range.len(),
            Some(grad) => {
                if empty > 0 {
                    joined.push(zeros(std::mem::take(&mut empty)));
                }
                joined.push(grad.cast(dtype));
            }
        }
    }
    empty += bucket.padded - bucket.elements();
    if empty > 0 {
        joined.push(zeros(empty));
    }
    Tensor::cat(joined, 0).cast(DType::F32)
}
