//! Divides the gradients and the optimizer's state of a run among its ranks (ZeRO's stages 1 and 2, Rajbhandari et al.,
//! 2020); every rank keeps all parameters.
//!
//! - `layout` puts the trained parameters into flat buckets, of which each rank owns an equal part;
//! - `reducer` sums a pass's gradients bucket by bucket while the pass runs, and gives each rank its part;
//! - `parts` holds a step's sums and reads their norms;
//! - [`Optimizer::apply_parts`](crate::optim::Optimizer::apply_parts) updates each rank's part, and gathers the
//!   parameters from all.
//!
//! With [`Shard::Gradients`] a pass's sums over the ranks are added up, whereas the other settings add up a rank's passes
//! first. In f32 and without clipping, all settings therefore give the same bits for steps of one pass a rank, and
//! [`Shard::None`] and [`Shard::Optimizer`] for all steps, where the collective takes its sums in rank order; with several
//! passes, the sums of [`Shard::Gradients`] differ by their rounding. The norm is summed from other pieces than on one
//! device, so that clipping differs by its rounding too. In bf16, [`Shard::None`] rounds a step's only pass to bf16 after
//! the sum, and the others don't.

mod layout;
mod parts;
mod reducer;
#[cfg(test)]
mod tests;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorReadError};

pub use layout::{Bucket, Layout, Member, Piece};
pub(crate) use layout::{LAYERS, bucket_of};
pub use parts::Parts;
pub use reducer::Reducer;

use super::{Collective, CollectiveError, sum_gradients};
use crate::optim::{GradientSink, StepReadout, add_gradients, read_out};
use crate::recipe::Shard;

/// The largest number of passes that any rank has in a step: those with fewer take part with empty ones.
///
/// # Errors
///
/// [`CollectiveError`]
pub fn passes(collective: &dyn Collective, own: usize) -> Result<usize, CollectiveError> {
    let all = collective.gather_bytes(&(own as u64).to_le_bytes())?;
    let number = |(rank, bytes): (usize, &Vec<u8>)| match <[u8; 8]>::try_from(&bytes[..]) {
        Ok(bytes) => Ok(u64::from_le_bytes(bytes) as usize),
        Err(_) => {
            let (found, expected) = (format!("{} bytes", bytes.len()), "its number of passes".into());
            Err(CollectiveError::Mismatch { rank, found, expected })
        }
    };
    all.iter().enumerate().map(number).try_fold(own, |most, number| Ok(most.max(number?)))
}

/// The gradients of a step's passes while they are computed.
pub struct StepGradients<'a> {
    collective: &'a dyn Collective,
    held: Held<'a>,
}

enum Held<'a> {
    /// The gradients of this rank's passes are added up and go over the ranks after the last one.
    Whole { sum: Option<GradientsParams>, pass: GradientsParams, scatter: bool },
    /// Each pass's gradients go over the ranks at once; so many passes are to come.
    Scattered { reducer: Reducer<'a>, left: usize },
}

impl<'a> StepGradients<'a> {
    /// Starts a step in which this rank has `own` passes. All ranks call it with the same setting.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    pub fn begin<M: Module>(
        collective: &'a dyn Collective,
        shard: Shard,
        module: &M,
        own: usize,
    ) -> Result<Self, CollectiveError> {
        let held = match shard {
            Shard::Gradients if collective.world() > 1 => {
                let layout = Layout::of(module, collective.rank(), collective.world());
                Held::Scattered { reducer: Reducer::new(collective, layout), left: passes(collective, own)? }
            }
            _ => {
                let scatter = shard != Shard::None && collective.world() > 1;
                Held::Whole { sum: None, pass: GradientsParams::new(), scatter }
            }
        };
        Ok(Self { collective, held })
    }

    /// Ends one of this rank's passes.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    pub fn end_pass<M: Module>(&mut self, module: &M) -> Result<(), CollectiveError> {
        match &mut self.held {
            Held::Whole { sum, pass, .. } => {
                let pass = std::mem::take(pass);
                if !pass.is_empty() {
                    *sum = Some(match sum.take() {
                        Some(sum) => add_gradients(module, sum, pass),
                        None => pass,
                    });
                }
                Ok(())
            }
            Held::Scattered { reducer, left } => {
                *left = left.saturating_sub(1);
                reducer.end_pass()
            }
        }
    }

    /// The step's gradients, summed over the ranks.
    ///
    /// # Errors
    ///
    /// [`CollectiveError`]
    pub fn reduce<M: Module>(self, module: &M) -> Result<Reduced, CollectiveError> {
        let collective = self.collective;
        let reducer = match self.held {
            Held::Scattered { mut reducer, left } => {
                (0..left).try_for_each(|_| reducer.end_pass())?;
                reducer
            }
            Held::Whole { sum, scatter: false, .. } => {
                return Ok(Reduced::Whole(sum_gradients(collective, module, sum.unwrap_or_default())?));
            }
            Held::Whole { sum, .. } => {
                let layout = Layout::of(module, collective.rank(), collective.world());
                let mut reducer = Reducer::new(collective, layout);
                reducer.take(module, sum.unwrap_or_default());
                reducer.end_pass()?;
                reducer
            }
        };
        Ok(Reduced::Parts(reducer.finish()?))
    }
}

impl GradientSink for StepGradients<'_> {
    fn take<M: Module>(&mut self, module: &M, found: GradientsParams) {
        match &mut self.held {
            Held::Whole { pass, .. } => pass.take(module, found),
            Held::Scattered { reducer, .. } => reducer.take(module, found),
        }
    }

    fn layer_done(&mut self, layer: usize) {
        if let Held::Scattered { reducer, .. } = &mut self.held {
            reducer.layer_done(layer);
        }
    }
}

/// The gradients of a step, summed over the ranks.
#[derive(Debug)]
pub enum Reduced {
    /// All of them, on every rank.
    Whole(GradientsParams),
    /// This rank's part of each bucket.
    Parts(Parts),
}

impl Reduced {
    /// Whether no parameter has a gradient on any rank.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Whole(gradients) => gradients.is_empty(),
            Self::Parts(parts) => parts.is_empty(),
        }
    }

    /// Reads back the values of all tensors in `report`, concatenated, and the norms of all gradients.
    ///
    /// # Errors
    ///
    /// [`TensorReadError`] and [`CollectiveError`].
    pub fn read_out<M, E>(
        &self,
        module: &M,
        collective: &dyn Collective,
        report: Vec<Tensor<1>>,
    ) -> Result<StepReadout, E>
    where
        M: Module,
        E: From<TensorReadError> + From<CollectiveError>,
    {
        match self {
            Self::Whole(gradients) => Ok(read_out(module, gradients, report)?),
            Self::Parts(parts) => parts.read_out(collective, report),
        }
    }
}
