//! AdamW where every rank updates its own part of the parameters, and all gather the result.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

use super::adamw::{Held, Rates, replaced};
use super::{Optimizer, StepReadout};
use crate::parallel::shard::{Parts, Reduced};
use crate::parallel::{Collective, CollectiveError};

impl Optimizer {
    /// Clips and updates with gradients that were summed over the ranks. If the readout is not finite, the parameters
    /// stay unchanged.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    pub fn apply_reduced<M: Module>(
        &mut self,
        module: M,
        gradients: Reduced,
        readout: &StepReadout,
        lr: f64,
        collective: &dyn Collective,
    ) -> Result<M, CollectiveError> {
        match gradients {
            Reduced::Whole(gradients) => Ok(self.apply(module, gradients, readout, lr)),
            Reduced::Parts(parts) => self.apply_parts(module, parts, readout, lr, collective),
        }
    }

    /// [`Optimizer::apply`] for parts of the gradients: bucket by bucket, this rank updates the pieces that it owns, and
    /// the bucket's values are gathered from all ranks in the parameters' type. This rank holds the moments, and in 16
    /// bits the master weights, of its pieces alone.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    pub fn apply_parts<M: Module>(
        &mut self,
        module: M,
        mut parts: Parts,
        readout: &StepReadout,
        lr: f64,
        collective: &dyn Collective,
    ) -> Result<M, CollectiveError> {
        if !readout.is_finite() {
            return Ok(module);
        }
        let grad_scale = self.clipping(readout);
        let mut module = module;
        for index in 0..parts.layout().buckets().len() {
            let Some(grads) = parts.take(index) else { continue };
            let bucket = &parts.layout().buckets()[index];
            let starts: HashMap<ParamId, usize> = bucket
                .members
                .iter()
                .filter(|member| parts.has(member.order))
                .map(|member| (member.id, member.range.start))
                .collect();
            if starts.is_empty() {
                continue;
            }
            let part = self.part(&module, &parts, index, grads, (lr, grad_scale));
            let whole = collective.all_gather(part)?;
            module = module.map(&mut Put { whole, starts });
        }
        Ok(module)
    }

    /// This rank's part of a bucket after its update, in the parameters' type. What is not updated is zero, and is not
    /// put back.
    fn part<M: Module>(
        &mut self,
        module: &M,
        parts: &Parts,
        index: usize,
        grads: Tensor<1>,
        (lr, grad_scale): (f64, f64),
    ) -> Tensor<1> {
        let layout = parts.layout();
        let bucket = &layout.buckets()[index];
        let mut values = Values { found: bucket.members.iter().map(|member| (member.id, None)).collect() };
        module.visit(&mut values);
        let zeros = |n: usize| Tensor::<1>::zeros([n], (&bucket.device, bucket.dtype));
        let (mut owned, mut places) = (Vec::new(), Vec::new());
        for member in bucket.members.iter().filter(|member| parts.has(member.order)) {
            let piece = layout.piece(bucket, member);
            let value = values.found.remove(&member.id).flatten();
            let Some(value) = value.filter(|_| !piece.of.is_empty()) else {
                *self.elsewhere.entry(member.name.clone()).or_default() += 1;
                continue;
            };
            places.push(piece.at.clone());
            let (value, grad) = (value.slice([piece.of]), grads.clone().slice([piece.at]));
            let state = self.states.remove(&member.name);
            owned.push((Held { name: member.name.clone(), matrix: member.dims.len() >= 2, value, state }, grad));
        }
        let rates = Rates { config: &self.config, groups: &self.groups, lr, grad_scale };
        let (mut joined, mut filled) = (Vec::new(), 0);
        for (at, Held { name, value, state, .. }) in places.into_iter().zip(rates.advance(owned)) {
            if at.start > filled {
                joined.push(zeros(at.start - filled));
            }
            filled = at.end;
            if let Some(state) = state {
                self.states.insert(name, state);
            }
            joined.push(value);
        }
        let part = layout.part(bucket);
        if part > filled {
            joined.push(zeros(part - filled));
        }
        Tensor::cat(joined, 0)
    }
}

/// Finds the values of some parameters, flattened.
struct Values {
    found: HashMap<ParamId, Option<Tensor<1>>>,
}

impl ModuleVisitor for Values {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(found) = self.found.get_mut(&param.id) {
            let value = param.val().without_autodiff();
            let n = value.shape().num_elements();
            *found = Some(value.reshape([n]));
        }
    }
}

/// Puts a bucket's values into its parameters.
struct Put {
    whole: Tensor<1>,
    /// Where each parameter begins in the bucket.
    starts: HashMap<ParamId, usize>,
}

impl ModuleMapper for Put {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(start) = self.starts.get(&param.id) else { return param };
        replaced(param, |old| {
            let (dims, n) = (old.dims(), old.shape().num_elements());
            self.whole.clone().narrow(0, *start, n).reshape(dims)
        })
    }
}
