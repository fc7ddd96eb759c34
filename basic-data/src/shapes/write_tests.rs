//! Tests of the documented properties of a written data set.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::*;

fn lines<T: serde::de::DeserializeOwned>(path: &Path) -> Vec<T> {
    fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_data_set_is_llavas_and_tells_what_its_images_show() {
    let dir = tempfile::tempdir().unwrap();
    let written = write_dataset(dir.path(), 30, 5, 8, 1).unwrap();
    assert_eq!((written.train, written.validation, written.eval), (30, 5, 8));

    for (name, turns) in [("pretrain.json", 1..=1), ("finetune.json", 4..=7)] {
        let samples: Vec<Value> = serde_json::from_slice(&fs::read(dir.path().join(name)).unwrap()).unwrap();
        assert_eq!(samples.len(), 30);
        for (index, sample) in samples.iter().enumerate() {
            assert_eq!(sample["id"], format!("train_{index:06}"));
            assert!(dir.path().join(sample["image"].as_str().unwrap()).is_file());
            let messages = sample["conversations"].as_array().unwrap();
            assert!(turns.contains(&(messages.len() / 2)), "{sample}");
            for (turn, message) in messages.iter().enumerate() {
                assert_eq!(message["from"], ["human", "gpt"][turn % 2]);
                let value = message["value"].as_str().unwrap();
                assert_eq!(value.starts_with("<image>\n"), turn == 0, "{value}");
                assert!(!value.is_empty());
            }
        }
    }

    let scenes: Vec<SceneRecord> = lines(&dir.path().join("scenes.jsonl"));
    assert_eq!(scenes.len(), 30 + 5 + 8);
    for record in &scenes {
        let image = image::open(dir.path().join(&record.image)).unwrap().into_rgb8();
        assert_eq!(image, render(&record.scene, record.render_seed));
        assert_eq!(record.scene.split(), Some(record.split));
    }
    let eval: Vec<QuestionRecord> = lines(&dir.path().join("eval.jsonl"));
    assert_eq!(eval.len(), written.eval_questions);
    for (index, record) in eval.iter().enumerate() {
        assert_eq!(record.question_id, index as u64);
        assert_eq!(record.held_out, record.scene.has_held_out_pair());
        assert!(scenes.iter().any(|s| s.image == record.image && s.scene == record.scene));
    }
}

#[test]
fn a_directory_that_holds_anything_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let error = write_dataset(dir.path(), 1, 1, 1, 0).unwrap_err();
    assert!(matches!(error, ShapesError::NotEmpty { .. }), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let file = dir.path().join("notes.txt");
    let error = write_dataset(&file, 1, 1, 1, 0).unwrap_err();
    assert!(error.to_string().contains("notes.txt"), "{error}");
    assert!(file.is_file());
}

#[test]
fn more_scenes_than_names_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let error = write_dataset(&dir.path().join("new"), 1_000_001, 0, 0, 0).unwrap_err();
    assert!(matches!(error, ShapesError::TooManyScenes { requested: 1_000_001, .. }), "{error}");
    assert!(!dir.path().join("new").exists());
}

#[test]
fn a_scene_that_cannot_be_is_refused_where_it_is_read() {
    let object = r#"{"place":"top","size":"small","colour":"red","shape":"star"}"#;
    let read = |objects: &str| serde_json::from_str::<Scene>(&format!(r#"{{"objects":[{objects}]}}"#));
    assert_eq!(read(object).unwrap().key(), "small red star at top");
    assert!(read("").unwrap_err().to_string().contains("0 objects"));
    let twice = format!("{object},{object}");
    assert!(read(&twice).unwrap_err().to_string().contains("two objects at top"));
    assert!(read(&object.replace("red", "pink")).is_err());
}
