"""Heads hooked to a network that a plain loop trains: they learn as they would by hand, and change only what they should."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, TensorDataset

from rlpheads.engine.config.streams import stream_seed
from rlpheads.engine.integrations.added_loss import add_loss
from rlpheads.engine.integrations.loader_rows import count_samples, index_and_targets
from rlpheads.engine.integrations.measurement import HeadSettings, Measurement
from rlpheads.loaders.adapters.indexed_dataset import IndexedDataset
from rlpheads.memorization.heads.combined_loss import TermWeights, combine_losses
from rlpheads.memorization.heads.head_losses import HeadTerms
from rlpheads.memorization.heads.labels import label_table
from rlpheads.memorization.heads.rlp_heads import RLPHeads
from rlpheads.memorization.records.ledger_file import read_ledger
from rlpheads.memorization.records.ledger_labels import ledger_labels

NUM_SAMPLES, NUM_LABELS = 24, 4


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def samples():
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(NUM_SAMPLES, 6, generator=random)
    return TensorDataset(inputs, torch.randint(3, (NUM_SAMPLES,), generator=random))


def settings(**changes):
    return HeadSettings(**{"taps": ["1", "3"], "num_labels": NUM_LABELS, "seed": 5, "lr": 1e-2, **changes})


def train(model, measurement, epochs=2, micro_batches=1):
    """A loop that knows nothing of heads but for the line that says what comes next."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(epochs):
        for step, (inputs, targets, index) in enumerate(DataLoader(IndexedDataset(samples()), batch_size=6)):
            if measurement is not None:
                measurement.expect(index, targets, 1 / micro_batches)
            (cross_entropy(model(inputs), targets) / micro_batches).backward()
            if (step + 1) % micro_batches == 0:
                optimizer.step()
                optimizer.zero_grad()
    return model


def train_by_hand(model, factor, epochs=2):
    """The same with everything written out: tapped features, own labels, own optimizer."""
    table_MN = label_table(NUM_SAMPLES, NUM_LABELS, num_draws=2, seed=5, split="train")
    own = RLPHeads([8, 8], NUM_LABELS, 1, seed=stream_seed(5, "heads"))
    audit = RLPHeads([8, 8], NUM_LABELS, 1, seed=stream_seed(5, "audit"))
    heads_optimizer = torch.optim.AdamW([*own.parameters(), *audit.parameters()], lr=1e-2, weight_decay=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(epochs):
        for inputs, targets, index in DataLoader(IndexedDataset(samples()), batch_size=6):
            first = model[:2](inputs)
            second = model[2:4](first)
            losses = own([first, second], table_MN[:1, index], HeadTerms("unlikelihood", (0, 1)))
            total = cross_entropy(model[4](second), targets) + combine_losses(losses, weights=TermWeights(factor)).total
            (total + combine_losses(audit([first, second], table_MN[1:, index])).total).backward()
            for each in (optimizer, heads_optimizer):
                each.step()
                each.zero_grad()
    return model, own, audit


def assert_same_weights(model, other):
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name])


def test_without_a_regulariser_the_network_is_trained_to_the_same_bits(tmp_path):
    model = network()
    measurement = Measurement(model, settings(num_audit_draws=1), NUM_SAMPLES, tmp_path)
    train(model, measurement)
    alone = train(network(), None)
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in model.state_dict().items())


def test_heads_and_a_regularised_network_are_those_of_a_loop_written_out(tmp_path):
    model = network()
    measurement = Measurement(model, settings(factor=2.0), NUM_SAMPLES, tmp_path)
    train(model, measurement)
    expected, own, audit = train_by_hand(network(), 2.0)
    assert_same_weights(model, expected)
    found = measurement.state_dict()["heads"]
    for name, heads in (("own", own), ("audit", audit)):
        torch.testing.assert_close(found[name], dict(heads.state_dict()))
    unregularised = train(network(), None)
    assert not torch.allclose(model[0].weight, unregularised[0].weight)


def test_micro_batches_share_the_regulariser_as_they_share_the_loss(tmp_path):
    """With heads that do not move, two halves of a batch give the gradient of the whole."""
    weights = []
    for batch_size in (NUM_SAMPLES, NUM_SAMPLES // 2):
        model, num_parts = network(), NUM_SAMPLES // batch_size
        measurement = Measurement(model, settings(factor=3.0, lr=0.0), NUM_SAMPLES, tmp_path)
        for inputs, targets, index in DataLoader(IndexedDataset(samples()), batch_size=batch_size):
            measurement.expect(index, targets, 1 / num_parts)
            (cross_entropy(model(inputs), targets) / num_parts).backward()
        weights.append(model[0].weight.grad)
    torch.testing.assert_close(*weights)


def test_the_ledger_holds_each_samples_labels_and_losses(tmp_path):
    model = network()
    measurement = Measurement(model, settings(num_draws=2, num_audit_draws=1, lr=0.0), NUM_SAMPLES, tmp_path, "mine")
    train(model, measurement, epochs=1)
    found = measurement.finish_epoch(0, 4)
    table = read_ledger(tmp_path / "ledger" / "epoch=0000" / "running.parquet")
    assert table.metadata.fingerprint == "mine"
    assert table.metadata.taps == ("1", "3")
    assert table.metadata.draws == {"own": slice(0, 2), "audit": slice(2, 3)}
    assert table.seen.all()
    assert (table.count == 1).all()
    labels_MN = label_table(NUM_SAMPLES, NUM_LABELS, num_draws=3, seed=5, split="train")
    assert torch.equal(ledger_labels(table), labels_MN)
    assert ((table.predicted == table.target) == table.class_hit).all()
    assert ((table.confidence >= 1 / 3) & (table.confidence <= 1)).all()
    assert table.target.tolist() == samples().tensors[1].tolist()
    assert found["rla/3"] == pytest.approx(table.hit[1, :2].mean())
    assert found["audit_rla/1"] == pytest.approx(table.hit[0, 2:].mean())
    assert measurement.ledger.num_seen == 0  # the next epoch begins


def test_held_out_samples_have_labels_of_their_own_and_train_nothing(tmp_path):
    model = network()
    measurement = Measurement(model, settings(), NUM_SAMPLES, tmp_path)
    inputs, targets = samples().tensors
    model.eval()
    measurement.expect(torch.arange(NUM_SAMPLES), targets)
    model(inputs)
    assert measurement.finish_heldout() == {}  # there are no heads yet
    train(model.train(), measurement)
    before = copy.deepcopy(measurement.state_dict()["heads"])
    model.eval()
    measurement.expect(torch.arange(NUM_SAMPLES), targets)
    with torch.no_grad():
        model(inputs)
        features = [model[:2](inputs), model[:4](inputs)]
    found = measurement.finish_heldout()
    torch.testing.assert_close(measurement.state_dict()["heads"], before)
    heads = RLPHeads([8, 8], NUM_LABELS, 1, seed=0)
    heads.load_state_dict(before["own"])
    labels_MB = label_table(NUM_SAMPLES, NUM_LABELS, num_draws=1, seed=5, split="val")
    hits_T = heads(features, labels_MB).hit_TMB.double().mean((1, 2))
    assert list(found.values()) == pytest.approx(hits_T.tolist())


def test_a_measurement_goes_on_where_another_ended(tmp_path):
    whole = Measurement(model := network(), settings(factor=1.0), NUM_SAMPLES, tmp_path)
    train(model, whole, epochs=2)
    first = Measurement(model := network(), settings(factor=1.0), NUM_SAMPLES, tmp_path)
    train(model, first, epochs=1)
    state = copy.deepcopy(first.state_dict())
    first.release()
    second = Measurement(model, settings(factor=1.0), NUM_SAMPLES, tmp_path)
    second.load_state_dict(state)
    train(model, second, epochs=1)
    torch.testing.assert_close(second.state_dict()["heads"], whole.state_dict()["heads"])


def test_released_networks_are_left_without_hooks(tmp_path):
    model = network()
    Measurement(model, settings(), NUM_SAMPLES, tmp_path).release()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_pass_that_was_not_announced_is_not_read(tmp_path):
    model = network()
    measurement = Measurement(model, settings(), NUM_SAMPLES, tmp_path)
    measurement.expect(torch.tensor([3]), torch.tensor([0]))
    for _ in range(2):
        model(torch.zeros(1, 6)).sum().backward()
    assert measurement.ledger.num_seen == 1
    assert measurement.ledger.tensors()["count"].sum() == 1


@pytest.mark.parametrize("form", ["tensor", "logits", "loss", "named tuple"])
def test_an_added_loss_is_seen_by_its_gradient_alone(form):
    from collections import namedtuple

    weight, other = torch.ones(2, requires_grad=True), torch.full((2,), 3.0, requires_grad=True)
    logits, loss = weight * 2, (weight * 5).sum()
    outputs = {
        "tensor": logits,
        "logits": SimpleNamespace(logits=logits, loss=None),
        "loss": SimpleNamespace(logits=logits, loss=loss),
        "named tuple": namedtuple("Output", "logits aux_logits")(logits, None),
    }
    added = add_loss(outputs[form], (other * 7).sum(), 0.5)
    value = added.loss if form == "loss" else added if form == "tensor" else added.logits
    assert torch.equal(value, loss if form == "loss" else logits)
    (value.sum() * 100).backward()
    assert torch.equal(other.grad, torch.full((2,), 3.5))  # 7 · share, whatever the loop multiplies its loss by
    assert torch.equal(weight.grad, torch.full((2,), 500.0 if form == "loss" else 200.0))


def test_samples_are_counted_through_what_lies_around_them():
    whole = IndexedDataset(samples())
    assert count_samples(DataLoader(Subset(Subset(whole, range(9)), [0, 1]))) == NUM_SAMPLES


def test_rows_of_batches_of_either_kind():
    index, targets = torch.tensor([4, 2]), torch.tensor([1, 0])
    for batch in ((torch.zeros(2, 3), targets, index), {"pixel_values": None, "labels": targets, "index": index}):
        assert [each.tolist() for each in index_and_targets(batch)] == [[4, 2], [1, 0]]


@pytest.mark.wrong("library")
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.zeros(2), torch.zeros(2)), r"a batch is \(Tensor, Tensor\), and not .* wrap the dataset"),
        (torch.zeros(2), "a batch is Tensor"),
        ({"labels": 1}, "entries 'labels', and not 'index'"),
        ({"index": 1, "class": 2}, "not any of 'labels', 'label'"),
    ],
)
def test_batches_without_indices_say_what_to_wrap(batch, message):
    with pytest.raises(ValueError, match=message):
        index_and_targets(batch)


@pytest.mark.wrong("library")
def test_settings_and_rows_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="reads no IndexedDataset"):
        count_samples(DataLoader(samples()))
    with pytest.raises(ValueError, match="no place 'layer'; allowed: names of modules"):
        Measurement(network(), settings(taps=["layer"]), NUM_SAMPLES, tmp_path)
    with pytest.raises(ValueError, match="name at least one module"):
        Measurement(network(), settings(taps=[]), NUM_SAMPLES, tmp_path)
    measurement = Measurement(network(), settings(), NUM_SAMPLES, tmp_path)
    with pytest.raises(ValueError, match=r"dtype torch.float32 .*mixed and soft targets have none"):
        measurement.expect(torch.arange(2), torch.zeros(2))
    with pytest.raises(TypeError, match="not str"):
        add_loss("logits", torch.zeros(()), 1.0)
