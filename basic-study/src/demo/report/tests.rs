//! What a reader of the page and of the terminal's table relies on.

use super::paired_arms::Comparison;
use super::sentences::Verdict;
use super::*;
use crate::demo::summary::Conclusion;
use crate::pages::{PictureError, numbers};
use basic_eval::statistics::Spread;

/// The page, with plain spaces for no-break ones.
fn page(summary: &Summary) -> String {
    let root = tempfile::tempdir().unwrap();
    fixture::write_images(root.path());
    render_html(summary, root.path()).unwrap().replace('\u{a0}', " ")
}

#[test]
fn text_from_outside_is_escaped() {
    let mut summary = fixture::summary(1, [0.03, 0.0]);
    let hostile = "<script>alert(\"1\")</script> & 'more'";
    summary.settings[0].name = hostile.to_owned();
    summary.settings[0].description = hostile.to_owned();
    summary.revision = Some(hostile.to_owned());
    summary.device = hostile.to_owned();
    for arm in &mut summary.settings[0].arms {
        let stage = &mut arm.runs[0].pretrain;
        stage.per_kind.insert(hostile.to_owned(), 0.5);
        stage.samples[0].question = hostile.to_owned();
        stage.samples[0].answer = hostile.to_owned();
        stage.samples[0].kind = hostile.to_owned();
    }
    let html = page(&summary);
    assert!(!html.contains("<script"));
    assert!(html.contains("&lt;script&gt;alert(&quot;1&quot;)&lt;&#x2f;script&gt; &amp; &#x27;more&#x27;"));
}

#[test]
fn the_page_refers_to_nothing_outside_itself() {
    let html = page(&fixture::summary(3, [0.03, 0.0]));
    assert!(html.contains("data:image/png;base64,"));
    for reference in ["http:", "https:", "url(", "@import", "<script", "<link rel=\"stylesheet\"", "src=\"images"] {
        assert!(!html.contains(reference), "{reference}");
    }
}

#[test]
fn differences_are_paired_by_seed_and_not_by_position() {
    let mut summary = fixture::summary(3, [0.03, 0.0]);
    let setting = &mut summary.settings[0];
    for (arm, offset) in [(0, 0.0), (1, 0.01)] {
        for run in &mut setting.arms[arm].runs {
            run.pretrain.accuracy = 0.2 * run.seed as f64 + offset;
        }
    }
    setting.arms[1].runs.reverse();
    setting.arms[0].runs.remove(0);
    let comparison = Comparison::new(setting, |run| Some(run.pretrain.accuracy));
    let difference = comparison.difference.unwrap();
    assert_eq!(comparison.by_seed.len(), 2, "seed 1 ran in one arm only");
    assert!((difference.mean - 0.01).abs() < 1e-12);
    assert!(difference.deviation.unwrap() < 1e-12);
}

#[test]
fn a_summary_with_one_seed_has_no_plus_minus() {
    let summary = fixture::summary(1, [0.03, 0.0]);
    assert!(!page(&summary).contains('±'));
    assert!(!render_table(&summary).contains('±'));
    let several = fixture::summary(3, [0.03, 0.0]);
    assert!(page(&several).contains('±'));
    assert!(render_table(&several).contains('±'));
}

#[test]
fn the_verdict_follows_from_the_interval() {
    let verdict = |mean, deviation| Verdict::of(Some(&Spread { mean, deviation, seeds: 3 }));
    assert_eq!(verdict(2.5, Some(1.0)), Verdict::Higher);
    assert_eq!(verdict(2.4, Some(1.0)), Verdict::Chance, "t is 4.30 with three seeds");
    assert_eq!(verdict(-3.0, Some(1.0)), Verdict::Lower);
    assert_eq!(verdict(0.5, Some(1.0)), Verdict::Chance);
    assert_eq!(verdict(-0.5, Some(1.0)), Verdict::Chance);
    assert_eq!(verdict(0.5, None), Verdict::Higher);
    assert_eq!(verdict(0.0, None), Verdict::Equal);
    assert_eq!(verdict(f64::NAN, None), Verdict::Unknown);
    assert_eq!(Verdict::of(None), Verdict::Unknown);
}

#[test]
fn a_worse_basic_is_called_lower() {
    let summary = fixture::summary(3, [-0.04, -0.04]);
    let table = render_table(&summary).split_whitespace().collect::<Vec<_>>().join(" ");
    for text in [page(&summary), table] {
        assert!(text.contains("After pretrain, BASIC is lower by 4.0 ± 0.0 points."));
        assert!(text.contains("accuracy is not higher than LLaVA’s in any of 6 comparisons: it is lower in 6."));
        assert!(!text.contains("BASIC is higher"));
    }
}

#[test]
fn a_difference_within_its_interval_is_called_chance() {
    let mut summary = fixture::summary(3, [0.0, 0.0]);
    for (run, shift) in summary.settings[0].arms[1].runs.iter_mut().zip([0.02, -0.01, -0.004]) {
        run.pretrain.accuracy += shift;
    }
    let sentence = "After pretrain, there is no difference beyond chance (+0.2 ± 1.6 points).";
    assert!(page(&summary).contains(sentence));
}

#[test]
fn one_seed_is_said_to_prove_little_and_nothing_is_emphasized() {
    let html = page(&fixture::summary(1, [0.03, 0.03]));
    assert!(html.contains("any of these differences may be chance"));
    assert!(!html.contains("change basic"));
    assert!(page(&fixture::summary(3, [0.03, 0.03])).contains("change basic"));
}

#[test]
fn the_short_demo_is_a_picture_of_every_seed_with_what_it_shows_and_what_not() {
    let mut summary = fixture::short(8, 0.03);
    for run in &mut summary.settings[0].arms[1].runs {
        run.pretrain.accuracy += if run.seed % 2 == 0 { 0.01 } else { -0.01 };
    }
    summary.conclusion = Conclusion::of(&summary.settings, 8);
    let conclusion = summary.conclusion.as_ref().unwrap();
    let (html, table) = (page(&summary), render_table(&summary));
    let (html_words, words) = (html.replace("&#x2f;", "/"), table.split_whitespace().collect::<Vec<_>>().join(" "));
    for sentence in [&conclusion.shown, &conclusion.not_shown] {
        assert!(html_words.contains(sentence.as_str()) && words.contains(sentence.as_str()), "{sentence}");
    }
    assert_eq!(html.matches("<g><title>seed ").count(), 8);
    assert!(table.contains("[") && table.contains("  mean") && table.matches(" o").count() >= 8, "{table}");
    for absent in ["finetune", "Beyond accuracy", ">Losses<", "validation", "comparisons"] {
        assert!(!html.contains(absent) && !table.contains(absent), "{absent}");
    }
    assert!(html.contains("Sample answers") && html.contains("Question kind"));
    assert!(table.lines().all(|line| line.chars().count() < 100));
}

#[test]
fn the_conclusion_follows_from_the_interval_whichever_arm_it_favours() {
    let shown = |gain, seeds, asked| {
        let mut summary = fixture::short(seeds, gain);
        for run in summary.settings[0].arms.iter_mut().flat_map(|arm| &mut arm.runs) {
            // Apart by a point or so, differently for each seed.
            run.pretrain.accuracy += if run.seed % 2 == 0 { 0.0 } else { gain / 5.0 };
        }
        for run in &mut summary.settings[0].arms[1].runs {
            run.pretrain.accuracy += if run.seed % 2 == 0 { 0.005 } else { -0.005 };
        }
        Conclusion::of(&summary.settings, asked).unwrap().shown
    };
    let higher = shown(0.03, 4, 4);
    assert!(higher.contains("24 captioned images and 4 seeds, BASIC answers 3.0 points more"), "{higher}");
    assert!(higher.contains("(+3.0 points, 95% interval +2.1 to +3.9, paired by seed)"), "{higher}");
    assert!(shown(-0.03, 4, 4).contains("BASIC answers 3.0 points fewer"));
    assert!(shown(0.0, 4, 4).contains("no difference between BASIC and LLaVA can be told from chance"));
    assert!(shown(0.03, 1, 1).contains("one seed, BASIC and LLaVA are 2.5 points apart, which one seed cannot tell"));
    assert!(shown(0.03, 4, 32).contains("and 4 of 32 seeds, BASIC"));
}

/// The numbers that the conclusion quotes stand in `docs/evidence.md`.
#[test]
fn what_is_not_shown_is_quoted_from_the_evidence() {
    let evidence = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/evidence.md")).unwrap();
    let summary = fixture::short(2, 0.0);
    let not_shown = |name: &str| {
        let mut setting = summary.settings[0].clone();
        setting.name = name.into();
        Conclusion::of(&[setting], 2).unwrap().not_shown
    };
    assert!(evidence.contains("| 20,000 | 61.0 ± 0.7 | 61.2 ± 0.8 | +0.3 [−0.9, +1.4] |"));
    assert!(evidence.contains("| none (baseline) | 49.4 ± 2.6 |"));
    assert!(evidence.contains("| both | 51.3 ± 1.4<br>+1.9 [+0.3, +3.6] ▲ |"));
    assert!(not_shown("few").contains("LLaVA 61.0% and BASIC 61.2% (+0.3 points, 95% interval −0.9 to +1.4)"));
    assert!(not_shown("many").contains("LLaVA 49.4% and BASIC 51.3% (+1.9 points, 95% interval +0.3 to +3.6)"));
}

#[test]
fn a_missing_image_is_an_error_that_names_it() {
    let root = tempfile::tempdir().unwrap();
    let error = render_html(&fixture::summary(1, [0.03, 0.0]), root.path()).unwrap_err();
    let path = root.path().join("images/eval-0000.png");
    assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
}

#[test]
fn a_truncated_image_is_an_error_that_names_it() {
    let root = tempfile::tempdir().unwrap();
    fixture::write_images(root.path());
    let path = root.path().join("images/eval-0001.png");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = render_html(&fixture::summary(1, [0.03, 0.0]), root.path()).unwrap_err();
    assert!(matches!(error, DemoError::Picture(PictureError::Decode { .. })));
    assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
}

#[test]
fn every_setting_and_every_question_kind_appears() {
    let summary = fixture::summary(3, [0.03, 0.0]);
    let (html, table) = (page(&summary), render_table(&summary));
    for setting in &summary.settings {
        assert!(html.contains(&setting.description));
        assert!(html.contains(&format!(">Setting: {}</h2>", setting.name)));
        assert!(table.contains(&format!("\n{}: {}", setting.name, setting.description)));
    }
    for kind in summary.majority.keys() {
        assert!(html.contains(kind) && table.contains(kind), "{kind}");
    }
}

#[test]
fn the_terminal_table_stays_under_100_columns() {
    let mut summary = fixture::summary(3, [0.03, -0.2]);
    summary.settings[0].description = "word ".repeat(60);
    summary.majority.insert("a kind with a very long name".to_owned(), 0.5);
    for line in render_table(&summary).lines() {
        assert!(line.chars().count() < 100, "{line}");
    }
}

#[test]
fn an_arm_that_did_not_run_leaves_gaps_and_no_verdict() {
    let mut summary = fixture::summary(2, [0.03, 0.0]);
    for setting in &mut summary.settings {
        setting.arms.truncate(1);
    }
    summary.conclusion = Conclusion::of(&summary.settings, 2);
    assert!(summary.conclusion.is_none());
    assert!(page(&summary).contains("Nothing could be compared"));
    assert!(render_table(&summary).contains("Nothing could be compared"));
}

#[test]
fn runs_without_curves_and_samples_still_make_a_page() {
    let mut summary = fixture::summary(1, [0.03, 0.0]);
    summary.settings.remove(1);
    for run in summary.settings[0].arms.iter_mut().flat_map(|arm| &mut arm.runs) {
        for stage in [Some(&mut run.pretrain), run.finetune.as_mut()].into_iter().flatten() {
            stage.details.as_mut().unwrap().curve.clear();
            stage.samples.clear();
        }
    }
    let html = page(&summary);
    assert!(html.contains("Not computed in these runs.") && !html.contains("Sample answers"));
    summary.settings.clear();
    summary.conclusion = None;
    assert!(page(&summary).contains("Nothing could be compared"));
}

#[test]
fn a_diverged_run_is_shown_as_such() {
    let mut summary = fixture::summary(1, [0.03, 0.0]);
    let stage = &mut summary.settings[0].arms[1].runs[0].pretrain;
    stage.accuracy = f64::NAN;
    stage.details.as_mut().unwrap().curve.iter_mut().for_each(|point| point.lm = f64::NAN);
    summary.conclusion = Conclusion::of(&summary.settings, 1);
    let html = page(&summary);
    assert!(html.contains(">NaN</td>"));
    assert!(!html.contains("=\"NaN"), "no position in a drawing");
    assert!(html.contains("could not be compared"));
}

#[test]
fn numbers_read_as_people_write_them() {
    assert_eq!(numbers::thousands(1_234_567), "1,234,567");
    assert_eq!(numbers::signed(-0.04, 1), "0.0");
    assert_eq!(numbers::signed(-1.25, 2), "−1.25");
    assert_eq!(numbers::duration(492.0), "8 min 12 s");
    assert_eq!(
        numbers::significant_spread(&Spread { mean: 0.1423, deviation: Some(0.002), seeds: 2 }),
        "0.142\u{a0}±\u{a0}0.002"
    );
    assert_eq!(numbers::significant_spread(&Spread { mean: 2.3e-6, deviation: None, seeds: 1 }), "2.3e-6");
}
