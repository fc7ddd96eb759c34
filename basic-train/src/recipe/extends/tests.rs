use std::fs;
use std::path::PathBuf;

use super::*;

const BASE: &str = "stage = \"pretrain\"\nmodel.checkpoint = \"m\"\ndata.path = \"d\"\n[objective]\nk = 4\n[train]\nbatch_size = 2\nsteps = 3\n";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = this.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, name: &str, sets: &[&str]) -> Result<Recipe, String> {
        let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
        Recipe::open(&self.path(name), &sets).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(&self, name: &str, sets: &[&str], mentions: &[&str]) {
        let said = self.open(name, sets).unwrap_err();
        assert!(mentions.iter().all(|mention| said.contains(mention)), "{said}");
        assert!(said.len() < 2500, "{} bytes", said.len());
    }
}

#[test]
fn what_a_recipe_says_holds_over_what_it_extends_key_by_key() {
    let folder = Folder::new(&[
        ("base.toml", BASE),
        (
            "own/child.toml",
            "extends = \"../base.toml\" # half as long\noutput = \"o\"\n[objective]\nsds = false\n[train]\nsteps = 1\n",
        ),
        ("grandchild.toml", "seed = 5\nextends = 'own/child.toml'\ntrain.batch_size = 1"),
    ]);
    let whole = BASE.replace("steps = 3", "steps = 1").replace("k = 4", "k = 4\nsds = false");
    let child = toml::from_str(&format!("output = \"o\"\n{whole}")).unwrap();
    assert_eq!(folder.open("own/child.toml", &[]).unwrap(), child);
    let grandchild = folder.open("grandchild.toml", &[]).unwrap();
    let expected =
        Recipe { seed: 5, train: super::super::TrainConfig { batch_size: 1, ..child.train.clone() }, ..child };
    assert_eq!(grandchild, expected);
    // Settings from the command line override all files.
    let set = folder.open("grandchild.toml", &["train.batch_size=7", "objective.k=2"]).unwrap();
    assert_eq!((set.train.batch_size, set.objective.basic.k, set.objective.basic.sds), (7, Some(2), false));
}

#[test]
fn what_is_written_of_a_recipe_no_longer_extends_anything() {
    let folder = Folder::new(&[("base.toml", BASE), ("child.toml", "extends = \"base.toml\"\nseed = 1\n")]);
    let recipe = folder.open("child.toml", &[]).unwrap();
    let written = toml::to_string(&recipe).unwrap();
    assert!(!written.contains("extends"), "{written}");
    assert_eq!(toml::from_str::<Recipe>(&written).unwrap(), recipe);
}

#[test]
fn an_error_names_the_file_at_fault_and_its_line() {
    let child = "\nextends = \"base.toml\"\n[loader]\nmax_length = 9\n";
    for (base, child, mentions) in [
        (BASE.replace("steps = 3", "step = 3"), child.to_string(), &["base.toml", "line 8", "step"][..]),
        (BASE.replace("k = 4", "k = = 4"), child.into(), &["base.toml", "line 5"]),
        (BASE.into(), child.replace("max_length", "maxlength"), &["child.toml", "line 4", "maxlength"]),
        (BASE.into(), child.replace("9", "\"nine\""), &["child.toml", "line 4", "nine"]),
        (BASE.into(), format!("{child}extends = \"x\"\n"), &["child.toml", "line 5", "extends"]),
        (BASE.replace("stage = \"pretrain\"", ""), child.into(), &["child.toml", "missing field `stage`"]),
        (BASE.replace("k = 4", "k = 0"), child.into(), &["base.toml", "objective.k is 0"]),
        (BASE.into(), format!("{child}[objective]\nk = 0\n"), &["child.toml", "objective.k is 0"]),
        (BASE.into(), format!("{child}[train]\nepochs = 1.0\n"), &["child.toml", "either `steps` or `epochs`"]),
    ] {
        let folder = Folder::new(&[("base.toml", &base), ("child.toml", &child)]);
        folder.refused("child.toml", &[], mentions);
        // With a valid `--set`, the file is still at fault.
        folder.refused("child.toml", &["seed=1"], mentions);
    }
    let folder = Folder::new(&[("base.toml", BASE), ("child.toml", child)]);
    folder.refused("child.toml", &["train.step=1"], &["--set train.step=1"]);
    folder.refused("child.toml", &["objective.k=0"], &["--set objective.k=0"]);
    folder.refused("child.toml", &["extends=base.toml"], &["--set extends=base.toml"]);
}

#[test]
fn a_key_that_the_recipe_mends_is_not_blamed_on_what_it_extends() {
    let base = BASE.replace("steps = 3", "steps = 0");
    let folder = Folder::new(&[
        ("base.toml", &base),
        ("child.toml", "extends = \"base.toml\"\ntrain.steps = 2\n"),
        ("grandchild.toml", "extends = \"child.toml\"\ntrain.steps = 0\n"),
    ]);
    assert_eq!(folder.open("child.toml", &[]).unwrap().train.steps, Some(2));
    folder.refused("grandchild.toml", &[], &["grandchild.toml", "steps"]);
}

#[test]
fn what_cannot_be_extended_is_refused_by_the_file_that_asks_for_it() {
    let long = format!("extends = \"{}\"", "x".repeat(100_000));
    let folder = Folder::new(&[
        ("self.toml", "extends = \"self.toml\"\n"),
        ("a.toml", "extends = \"./b.toml\"\n"),
        ("b.toml", "extends = \"../FOLDER/a.toml\"\n"),
        ("gone.toml", "extends = \"nowhere.toml\"\n"),
        ("folder.toml", "extends = \".\"\n"),
        ("number.toml", "extends = 3\n"),
        ("list.toml", "extends = [\"a.toml\"]\n"),
        ("empty.toml", "extends = \"\"\n"),
        ("table.toml", "[extends]\npath = \"a.toml\"\n"),
        ("long.toml", &long),
    ]);
    let name = folder.0.path().file_name().unwrap().to_str().unwrap().to_string();
    fs::write(folder.path("b.toml"), format!("extends = \"../{name}/a.toml\"\n")).unwrap();
    folder.refused("self.toml", &[], &["self.toml: extends = self.toml", "cannot extend itself"]);
    folder.refused("a.toml", &[], &["b.toml: extends = ", "cannot extend itself"]);
    folder.refused("gone.toml", &[], &["gone.toml: extends = nowhere.toml: No such file"]);
    folder.refused("folder.toml", &[], &["folder.toml: extends = ."]);
    for name in ["number.toml", "list.toml", "empty.toml", "table.toml"] {
        folder.refused(name, &[], &[name, "write the path of another recipe"]);
    }
    folder.refused("long.toml", &[], &["long.toml: extends = xxx"]);
    let chain: Vec<(String, String)> = (0..12)
        .map(|i| (format!("{i}.toml"), if i == 0 { BASE.into() } else { format!("extends = \"{}.toml\"\n", i - 1) }))
        .collect();
    let chain: Vec<(&str, &str)> = chain.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let folder = Folder::new(&chain);
    assert!(folder.open(&format!("{MOST_EXTENDED}.toml"), &[]).is_ok());
    folder.refused(&format!("{}.toml", MOST_EXTENDED + 1), &[], &["1.toml: extends = 0.toml", "at most 8"]);
    folder.refused("11.toml", &[], &["3.toml: extends = 2.toml", "at most 8"]);
}

/// The recipes of the paper's runs and of its baselines, which contain only their differences.
#[test]
fn a_baseline_of_the_paper_is_its_twin_without_supervision() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let baselines: Vec<String> = names.filter(|name| name.ends_with("-llava.toml")).collect();
    assert!(baselines.len() >= 14, "{baselines:?}");
    for name in baselines {
        let twin = |text: &str| text.replace("-basic", "-llava");
        let mut expected = Recipe::open(&folder.join(name.replace("-llava.toml", "-basic.toml")), &[]).unwrap();
        expected.objective.basic.das = false;
        expected.objective.basic.sds = false;
        for path in expected.output.iter_mut().chain(&mut expected.model.checkpoint) {
            *path = twin(path.to_str().unwrap()).into();
        }
        assert_eq!(Recipe::open(&folder.join(&name), &[]).unwrap(), expected, "{name}");
    }
}
