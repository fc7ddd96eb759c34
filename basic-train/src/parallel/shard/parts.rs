//! A rank's parts of the gradients of a step, after they were summed over the ranks.

use burn::tensor::{DType, Tensor, TensorReadError};

use super::layout::Layout;
use crate::optim::{StepReadout, squares_of, total_squares};
use crate::parallel::{Collective, CollectiveError};

/// This rank's parts of the summed gradients, in f32.
#[derive(Debug)]
pub struct Parts {
    layout: Layout,
    sums: Vec<Option<Tensor<1>>>,
    present: Vec<bool>,
}

impl Parts {
    pub(super) fn new(layout: Layout, sums: Vec<Option<Tensor<1>>>, present: Vec<bool>) -> Self {
        Self { layout, sums, present }
    }

    /// Which elements this rank owns.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether the parameter of this order has a gradient on any rank; the same on all ranks.
    pub fn has(&self, order: usize) -> bool {
        self.present.get(order).copied().unwrap_or(false)
    }

    /// Whether no parameter has a gradient.
    pub fn is_empty(&self) -> bool {
        !self.present.contains(&true)
    }

    /// Takes this rank's part of a bucket.
    pub fn take(&mut self, bucket: usize) -> Option<Tensor<1>> {
        self.sums.get_mut(bucket).and_then(Option::take)
    }

    /// Reads back the values of all tensors in `report`, and the norms of all gradients, which are the same on all
    /// ranks: each contributes the squares of what it owns. A value that is not finite makes its parameter's norm so on
    /// every rank.
    ///
    /// # Errors
    ///
    /// [`TensorReadError`] and [`CollectiveError`].
    pub fn read_out<E>(&self, collective: &dyn Collective, report: Vec<Tensor<1>>) -> Result<StepReadout, E>
    where
        E: From<TensorReadError> + From<CollectiveError>,
    {
        let mut read: Vec<Tensor<1>> = report.into_iter().map(|t| t.without_autodiff().cast(DType::F32)).collect();
        let shown: usize = read.iter().map(|t| t.dims()[0]).sum();
        let (mut names, mut orders, mut counts) = (vec![None; self.present.len()], Vec::new(), Vec::new());
        for (index, bucket) in self.layout.buckets().iter().enumerate() {
            let mut pieces = Vec::new();
            for member in bucket.members.iter().filter(|member| self.has(member.order)) {
                names[member.order] = Some(member.name.clone());
                let at = self.layout.piece(bucket, member).at;
                if let (Some(part), false) = (&self.sums[index], at.is_empty()) {
                    orders.push(member.order);
                    pieces.push(part.clone().slice([at]));
                }
            }
            // Bucket by bucket, because a slice may be a copy.
            let (parts, sums) = squares_of(pieces);
            counts.extend(parts);
            read.extend(sums);
        }
        let mut values = match read.is_empty() {
            true => Vec::new(),
            false => Tensor::cat(read, 0).try_into_vec_as::<f32>()?,
        };
        let mut squares = vec![0.0; self.present.len()];
        for (order, square) in orders.into_iter().zip(total_squares(&values[shown..], counts)) {
            squares[order] = square;
        }
        values.truncate(shown);
        collective.sum_f64(&mut squares)?;
        let named = names.into_iter().zip(&squares).filter_map(|(name, square)| Some((name?, square.sqrt())));
        let grad_norm = squares.iter().sum::<f64>().sqrt() as f32;
        Ok(StepReadout { values, grad_norm, norms: named.collect() })
    }
}
