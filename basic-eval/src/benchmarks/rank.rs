//! Ranks the options of a benchmark's multiple-choice questions by their likelihood, beside the generated answers.

use std::collections::HashMap;

use basic_data::VisionCache;
use basic_models::Checkpoint;
use basic_models::nn::Llava;

use super::answers::key;
use super::question_files::id;
use super::respond::{CACHE_MIB, images, share, tiles};
use super::{Asked, BenchmarkError, ByLikelihood, Judged, Likelihoods, Options, Peers, Rankings, Task};
use crate::questions::{EvalOptions, Ranker};

impl Task {
    /// The questions that [`rank`] asks: each without its options, which are then ranked as its answer. Empty if the
    /// benchmark has no options.
    pub fn ranked_questions(&self) -> Vec<Asked> {
        let ranked = self.rankable();
        ranked.map(|(asked, options)| Asked { prompt: options.text.clone(), ..asked.clone() }).collect()
    }

    /// Adds the outcome of ranking, with the likelihoods in the order of [`Task::ranked_questions`], to the judged
    /// answers of the same questions.
    ///
    /// # Errors
    ///
    /// [`BenchmarkError`] if a question has likelihoods of another number of options: the file has then been changed.
    pub fn judge_ranking(&self, rankings: &[Likelihoods], judged: &mut [Judged]) -> Result<(), BenchmarkError> {
        let mut outcomes = HashMap::new();
        for ((asked, options), found) in self.rankable().zip(rankings) {
            let outcome = outcome(options, &found.log_likelihoods).ok_or_else(|| BenchmarkError::Rankings {
                question: id(&asked.id),
                found: found.log_likelihoods.len(),
                options: options.options.len(),
            })?;
            outcomes.insert(key(asked), outcome);
        }
        for line in judged {
            line.by_likelihood = outcomes.remove(&(id(&line.question_id), line.prompt.clone()));
        }
        Ok(())
    }
}

fn outcome(options: &Options, log_likelihoods: &[f64]) -> Option<ByLikelihood> {
    if log_likelihoods.len() != options.options.len() {
        return None;
    }
    let characters = options.options.iter().map(|option| option.chars().count().max(1) as f64);
    let by_length: Vec<f64> = log_likelihoods.iter().zip(characters).map(|(sum, length)| sum / length).collect();
    // Of equally likely options, the first. Options with the same text are the same answer.
    let most = |values: &[f64]| (0..values.len()).reduce(|a, b| if values[b] > values[a] { b } else { a });
    let text = |values: &[f64]| options.options.get(most(values)?);
    let truth = options.options.get(options.answer)?;
    let (answer, answer_by_length) = (text(log_likelihoods)?, text(&by_length)?);
    let score = |answer: &String| f64::from(u8::from(answer == truth));
    Some(ByLikelihood { answer: answer.clone(), score: score(answer), score_by_length: score(answer_by_length) })
}

/// Checks that every question's options can be ranked, so that a bad one is reported before the weights are read.
///
/// # Errors
///
/// [`BenchmarkError`] that names the question.
pub fn check_options(checkpoint: &Checkpoint, options: &EvalOptions, task: &Task) -> Result<(), BenchmarkError> {
    let ranker = Ranker::new(checkpoint, options)?;
    for (asked, options) in task.rankable() {
        ranker.check(&id(&asked.id), &options.text, &tiles(asked, checkpoint)?, &options.options)?;
    }
    Ok(())
}

/// Computes the likelihoods of the options of those questions that `rankings` lacks, with one model per device;
/// `progress` is called with the number of questions done so far. `peers` are as in [`respond`](super::respond).
///
/// # Errors
///
/// [`BenchmarkError`] that names the question or the file; what was computed stays stored.
pub fn rank(
    models: Vec<Llava>,
    peers: Option<&dyn Peers>,
    checkpoint: &Checkpoint,
    options: &EvalOptions,
    task: &Task,
    rankings: &mut Rankings,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<(), BenchmarkError> {
    let asked = task.ranked_questions();
    let options_of: HashMap<_, &Options> =
        asked.iter().map(key).zip(task.rankable().map(|(_, options)| options)).collect();
    let ranker = Ranker::new(checkpoint, options)?;
    share(models, peers, options.batch_size, &asked, rankings, progress, &|model, queue| {
        let mut cache = VisionCache::new(CACHE_MIB);
        while let Some(batch) = queue.next()? {
            let images = images(batch)?;
            let mut made = Vec::with_capacity(batch.len());
            for (question, image) in batch.iter().zip(&images) {
                let options = options_of.get(&key(question)).map_or(&[][..], |options| &options.options);
                let (name, text) = (id(&question.id), &question.prompt);
                let log_likelihoods = ranker.rank(model, &mut cache, &name, text, image.as_ref(), options)?;
                made.push(Likelihoods { log_likelihoods });
            }
            queue.store(batch, made)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_likely_option_is_the_answer_and_a_longer_one_may_win_by_length() {
        let options = |texts: &[&str], answer| Options {
            text: "q".into(),
            options: texts.iter().map(ToString::to_string).collect(),
            answer,
        };
        let found = outcome(&options(&["dog", "elephant", "cow"], 1), &[-3.0, -4.0, -6.0]).unwrap();
        // -1 and -0.5 and -2 a character.
        assert_eq!((found.answer.as_str(), found.score, found.score_by_length), ("dog", 0.0, 1.0));
        let same = outcome(&options(&["dog", "cow", "dog"], 2), &[-3.0, -4.0, -3.0]).unwrap();
        assert_eq!((same.score, same.score_by_length), (1.0, 1.0), "two options of the same text are one answer");
        assert!(outcome(&options(&["dog", "cow"], 0), &[-1.0]).is_none());
    }
}
