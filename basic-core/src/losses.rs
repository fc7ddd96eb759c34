//! The losses of a batch: the language model's, and one named term for each loss that a supervision method adds.

use burn::tensor::{DType, Device, Tensor};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// A named loss of a supervision method.
#[derive(Debug, Clone, PartialEq)]
pub struct Term<T = Tensor<1>> {
    /// Its name in recipes, metrics and reports.
    pub name: &'static str,
    /// Its factor in the objective; 0 if the term is off.
    pub weight: f64,
    /// Its value, unweighted.
    pub value: T,
}

/// The losses of a batch: tensors `[1]` in f32 during a step, plain numbers once they are read back.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Losses<T = Tensor<1>> {
    /// Mean cross entropy over the target tokens.
    pub lm: T,
    /// The methods' terms, in the methods' order.
    pub terms: Vec<Term<T>>,
}

/// The name of the language model's loss.
pub const LM: &str = "lm";
/// The name of the objective, the weighted sum.
pub const TOTAL: &str = "total";

/// A type in which losses are added up: a tensor or a number.
pub trait LossValue: Clone {
    /// `self + weight * other`.
    #[must_use]
    fn plus(self, weight: f64, other: Self) -> Self;
}

impl LossValue for Tensor<1> {
    fn plus(self, weight: f64, other: Self) -> Self {
        if weight == 1.0 { self + other } else { self + other.mul_scalar(weight) }
    }
}

impl LossValue for f64 {
    fn plus(self, weight: f64, other: Self) -> Self {
        self + weight * other
    }
}

impl LossValue for f32 {
    fn plus(self, weight: f64, other: Self) -> Self {
        self + weight as f32 * other
    }
}

impl<T: LossValue> Losses<T> {
    /// The objective: the language model's loss and every term times its weight.
    pub fn total(&self) -> T {
        let on = self.terms.iter().filter(|term| term.weight != 0.0);
        on.fold(self.lm.clone(), |sum, term| sum.plus(term.weight, term.value.clone()))
    }

    /// Adds the losses of another part of the same batch.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let terms = self.terms.into_iter().zip(other.terms);
        Self {
            lm: self.lm.plus(1.0, other.lm),
            terms: terms.map(|(a, b)| Term { value: a.value.plus(1.0, b.value), ..a }).collect(),
        }
    }
}

impl<T> Losses<T> {
    /// Every loss with its name, the language model's first.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &T)> {
        std::iter::once((LM, &self.lm)).chain(self.terms.iter().map(|term| (term.name, &term.value)))
    }

    /// The value of the loss with this name.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.named().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The same losses with their values replaced.
    ///
    /// # Errors
    ///
    /// Returns the first error of `change`.
    pub fn try_map<U, E>(self, mut change: impl FnMut(&'static str, T) -> Result<U, E>) -> Result<Losses<U>, E> {
        let lm = change(LM, self.lm)?;
        let terms = self.terms.into_iter().map(|Term { name, weight, value }| {
            let value = change(name, value)?;
            Ok(Term { name, weight, value })
        });
        Ok(Losses { lm, terms: terms.collect::<Result<_, E>>()? })
    }

    /// The same losses with their values replaced.
    pub fn map<U>(self, mut change: impl FnMut(&'static str, T) -> U) -> Losses<U> {
        match self.try_map::<U, std::convert::Infallible>(|name, value| Ok(change(name, value))) {
            Ok(losses) => losses,
            Err(never) => match never {},
        }
    }
}

impl Losses {
    /// The values detached from the autodiff graph.
    #[must_use]
    pub fn without_autodiff(self) -> Self {
        self.map(|_, value| value.without_autodiff())
    }

    /// The value of a term if nothing was supervised: 0, `[1]` in f32.
    pub(crate) fn zero(device: &Device) -> Tensor<1> {
        Tensor::zeros([1], (device, DType::F32))
    }
}

/// A map from every loss's name to its value, the language model's first.
impl<T: Serialize> Serialize for Losses<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1 + self.terms.len()))?;
        for (name, value) in self.named() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(lm: f64, weights: [f64; 2], values: [f64; 2]) -> Losses<f64> {
        let term = |i: usize| Term { name: ["a", "b"][i], weight: weights[i], value: values[i] };
        Losses { lm, terms: vec![term(0), term(1)] }
    }

    #[test]
    fn the_total_is_the_weighted_sum_and_leaves_out_what_is_off() {
        assert_eq!(losses(1.0, [2.0, 0.5], [3.0, 4.0]).total(), 9.0);
        assert_eq!(losses(1.0, [2.0, 0.0], [3.0, f64::NAN]).total(), 7.0);
    }

    #[test]
    fn the_parts_of_a_batch_add_up_and_are_written_by_name() {
        let sum = losses(1.0, [1.0, 1.0], [2.0, 3.0]).plus(losses(0.5, [1.0, 1.0], [0.25, 0.125]));
        assert_eq!(serde_json::to_string(&sum).unwrap(), r#"{"lm":1.5,"a":2.25,"b":3.125}"#);
        assert_eq!((sum.get("b"), sum.get("c")), (Some(&3.125), None));
    }
}
