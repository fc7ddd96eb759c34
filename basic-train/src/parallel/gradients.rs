//! Sums a module's gradients over the replicas.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

use super::{Collective, CollectiveError};

/// The largest number of elements that are summed together: 256 MiB in f32.
const BUCKET: usize = 1 << 26;

/// The types that gradients may have.
const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Sums gradients over the replicas, parameter by parameter in the module's order; every replica receives the sums.
///
/// A replica without a gradient for a parameter (for example because its share of the batch is text only) contributes
/// zeros. The sum covers every parameter that has a gradient on any replica, so all replicas agree on the list. Sums of
/// 16-bit types are computed in f32 and rounded once; a parameter whose gradients differ in type gets an f32 sum.
///
/// # Errors
///
/// [`CollectiveError`], also if the replicas' modules differ.
pub fn sum_gradients<M: Module>(
    collective: &dyn Collective,
    module: &M,
    grads: GradientsParams,
) -> Result<GradientsParams, CollectiveError> {
    if collective.world() == 1 {
        return Ok(grads);
    }
    let mut held = Held { grads: &grads, marks: Vec::new() };
    module.visit(&mut held);
    let mut marks = held.marks;
    collective.sum_f64(&mut marks)?;
    let types: Vec<Option<DType>> = marks.chunks(TYPES.len()).map(agreed).collect();

    let mut take = Take { grads, types: types.iter(), flat: Vec::new() };
    module.visit(&mut take);
    let mut summed = Vec::with_capacity(take.flat.len());
    let mut flat = take.flat.into_iter().peekable();
    while flat.peek().is_some() {
        let (mut bucket, mut dtypes, mut elements) = (Vec::new(), Vec::new(), 0);
        while let Some((tensor, dtype)) = flat.next_if(|(next, _)| elements == 0 || elements + next.dims()[0] <= BUCKET)
        {
            elements += tensor.dims()[0];
            bucket.push(tensor.cast(DType::F32));
            dtypes.push(dtype);
        }
        let sums = collective.sum(bucket)?;
        summed.extend(sums.into_iter().zip(dtypes).map(|(sum, dtype)| sum.cast(dtype)));
    }

    let mut put = Put { types: types.iter(), summed: summed.into_iter(), grads: GradientsParams::new() };
    module.visit(&mut put);
    Ok(put.grads)
}

/// The type of a parameter's sum, given how many replicas have a gradient of each type.
fn agreed(counts: &[f64]) -> Option<DType> {
    let mut found = TYPES.iter().zip(counts).filter(|(_, count)| **count > 0.0).map(|(dtype, _)| *dtype);
    let first = found.next()?;
    Some(if found.next().is_some() { DType::F32 } else { first })
}

/// Marks the parameters that have a gradient on this replica, by the gradient's type.
struct Held<'a> {
    grads: &'a GradientsParams,
    marks: Vec<f64>,
}

impl ModuleVisitor for Held<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let dtype = self.grads.get::<D>(param.id).map(|grad| grad.dtype());
        // Any other type is summed as f32.
        let dtype = dtype.map(|dtype| if TYPES.contains(&dtype) { dtype } else { DType::F32 });
        self.marks.extend(TYPES.iter().map(|t| f64::from(u8::from(dtype == Some(*t)))));
    }
}

/// Takes the gradients out of the set, flattened, with the type of their sum; zeros where only another replica has one.
struct Take<'a> {
    grads: GradientsParams,
    types: std::slice::Iter<'a, Option<DType>>,
    flat: Vec<(Tensor<1>, DType)>,
}

impl ModuleVisitor for Take<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(Some(dtype)) = self.types.next() else { return };
        let shape = param.shape();
        let flat = match self.grads.remove::<D>(param.id) {
            Some(grad) => grad.reshape([shape.num_elements()]),
            None => Tensor::zeros([shape.num_elements()], (&param.device().without_autodiff(), *dtype)),
        };
        self.flat.push((flat, *dtype));
    }
}

/// Assigns the sums to their parameters.
struct Put<'a> {
    types: std::slice::Iter<'a, Option<DType>>,
    summed: std::vec::IntoIter<Tensor<1>>,
    grads: GradientsParams,
}

impl ModuleVisitor for Put<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(Some(_)) = self.types.next()
            && let Some(sum) = self.summed.next()
        {
            self.grads.register(param.id, sum.reshape(param.shape().dims::<D>()));
        }
    }
}
