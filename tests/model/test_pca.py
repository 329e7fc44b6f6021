import pytest
import torch

from model.pca import StreamingCovariance


def test_batches_give_what_all_vectors_give_at_once():
    torch.manual_seed(0)
    vectors = 100 + torch.randn(300, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    stream = StreamingCovariance(12)
    for batch in (vectors[:1], vectors[1:1], vectors[1:120], vectors[120:]):
        stream.add(batch)
    found = stream.components(12)
    torch.testing.assert_close(found.mean_P, vectors.mean(0), rtol=1e-12, atol=0)
    covariance = found.direction_KP.T @ torch.diag(found.variance_K) @ found.direction_KP
    torch.testing.assert_close(covariance, torch.cov(vectors.T, correction=0), rtol=1e-10, atol=1e-10)


def test_directions_are_orthonormal_sorted_and_of_decided_sign():
    torch.manual_seed(1)
    stream = StreamingCovariance(10)
    stream.add(torch.randn(200, 10) * torch.arange(1, 11))
    found = stream.components(4)
    torch.testing.assert_close(found.direction_KP @ found.direction_KP.T, torch.eye(4, dtype=torch.float64))
    assert found.variance_K.tolist() == sorted(found.variance_K.tolist(), reverse=True)
    assert (found.direction_KP.gather(1, found.direction_KP.abs().argmax(1, keepdim=True)) > 0).all()
    assert 0.5 < found.explained < 1


def test_too_few_vectors_are_refused():
    stream = StreamingCovariance(8)
    stream.add(torch.randn(3, 8))
    with pytest.raises(ValueError, match="need more than 3 vectors"):
        stream.components(3)
