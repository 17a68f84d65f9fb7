"""A model's card lists its training scans: kept in its file, and merged with those of the model it started from."""

from voxsam.testing import stub_network
from voxsam.weights.checkpoint import load_model, save_model

FIRST = {"livers": {"a": "01", "b": "02"}}


def test_a_file_keeps_what_its_network_was_trained_on(tmp_path):
    network = stub_network()
    network.card = network.card.having_seen(FIRST)
    save_model(network, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors", "cpu").card.trained_on == FIRST


def test_what_comes_later_is_added_and_the_first_card_stays():
    card = stub_network().card.having_seen(FIRST)
    both = card.having_seen({"livers": {"c": "03"}, "lungs": {"d": "04"}})
    assert both.trained_on == {"livers": {"a": "01", "b": "02", "c": "03"}, "lungs": {"d": "04"}}
    assert card.trained_on == FIRST


def test_a_card_that_says_nothing_of_it_has_no_cases():
    assert stub_network().card.trained_on == {}


def test_the_packaged_model_says_what_it_has_seen():
    seen = load_model("voxsam-tiny", "cpu").card.trained_on
    assert {"sarcoma_ct", "backgrounds_ct", "nodules_lidc"} <= set(seen)
    assert len(seen["sarcoma_ct"]) == 18
