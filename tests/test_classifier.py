"""The classifier of filled images learns, comes back, and knows MNIST."""

import json

import pytest
import torch

from benchmarks import train_classifier
from flowlib.files import SHIPPED, UserError
from flowlib.images import classifier


def test_it_learns_the_digits_and_comes_back_from_its_file(tmp_path, digits):
    weights = tmp_path / "c.pt"
    file = tmp_path / "m.json"
    files = ["--checkpoint", str(weights), "--metrics", str(file)]
    train_classifier.main(["--dataset", "digits", "--epochs", "8", *files])
    metrics = json.loads(file.read_text())
    assert metrics["test_accuracy"] > 0.8

    model = classifier.load_classifier(weights)
    accuracy = train_classifier.measure_accuracy(model, digits.test, digits.test_labels)
    assert accuracy == pytest.approx(metrics["test_accuracy"])


def test_the_shipped_classifier_knows_mnist(mnist):
    model = classifier.load_classifier(SHIPPED / "classifier_mnist.pt")
    probabilities = model.classify(mnist.test[:500], chunk=200)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(500))
    images, labels = mnist.test[:500], mnist.test_labels[:500]
    assert train_classifier.measure_accuracy(model, images, labels) > 0.98


def test_a_missing_file_says_what_makes_it(tmp_path):
    with pytest.raises(UserError, match="train_classifier"):
        classifier.load_classifier(tmp_path / "none.pt")


def test_classes_keep_the_shape_of_the_images_and_are_the_likeliest():
    model = classifier.Classifier((1, 8, 8), levels=17, classes=10).eval()
    images = torch.randint(0, 17, (3, 4, 1, 8, 8))
    found = model.find_classes(images)
    assert torch.equal(found[1], model.classify(images[1]).argmax(1))
    assert torch.equal(model.find_classes(images[2]), found[2])
