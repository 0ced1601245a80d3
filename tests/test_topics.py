"Topics from any vectors: bad input, many documents, words in other scripts, and what topicwizard asks of a model"
import numpy as np
import pytest

import loragrass as lg
from loragrass.topics import find_topics

RNG = np.random.default_rng(0)
TEXTS = [f"{'bread flour dough' if i % 2 else 'engine wheel brake'} text {i % 5}" for i in range(20)]
VECTORS = np.eye(2)[np.arange(20) % 2] + .05 * RNG.normal(size=(20, 2))

def test_groups_are_those_of_the_vectors():
    found = find_topics(VECTORS, TEXTS, 2)
    assert set(found.labels[::2]) == {0} and set(found.labels[1::2]) == {1} and found.sizes.tolist() == [10, 10]
    assert [set(w) for w in found.words(3)] == [{"engine", "wheel", "brake"}, {"bread", "flour", "dough"}]
    assert found.diversity == 1 and found.tree.shape == (1, 4) and found.map.shape == (20, 2) and found.table().npmi.tolist() == [1, 1]

@pytest.mark.parametrize("vectors, texts, kwargs, message", [
    (VECTORS[:5], TEXTS, {}, "expected one row a text"), (VECTORS, TEXTS, dict(n_clusters=21), "expected 'auto' or 1 … 20"), (VECTORS, TEXTS, dict(n_clusters=0), "expected 'auto' or 1"),
    (np.where(np.arange(20)[:, None] == 7, np.nan, VECTORS), TEXTS, {}, "the vector of document 7 has NaN"), (VECTORS, TEXTS, dict(outliers=1.), "0 ≤ outliers < 1"),
    (VECTORS, [f"word{chr(97 + i)}" for i in range(20)], {}, "no word stands in 2 of the 20 documents")])
def test_bad_input(vectors, texts, kwargs, message):
    with pytest.raises(ValueError, match=message): find_topics(vectors, texts, **kwargs)

def test_outliers_only_on_request():
    vectors = VECTORS.copy()
    vectors[3] = [1., .9]
    assert (find_topics(vectors, TEXTS, 2).labels >= 0).all()
    assert np.flatnonzero(find_topics(vectors, TEXTS, 2, outliers=.05).labels == -1).tolist() == [3]

def test_many_documents():
    at = np.arange(2300) % 3
    found = find_topics(np.eye(3)[at] + .02 * RNG.normal(size=(2300, 3)), [TEXTS[i % 20] for i in range(2300)], 3)
    assert all(len(set(found.labels[at == t])) == 1 for t in range(3)) and len(found) == 3

def test_words_of_other_scripts():
    found = find_topics(VECTORS, ["хлеб тесто мука" if i % 2 else "Wärme Öl Straße" for i in range(20)], 2)
    assert set(found.vocabulary) == {"хлеб", "тесто", "мука", "wärme", "öl", "straße"}

def test_what_topicwizard_asks():
    found = find_topics(VECTORS, TEXTS, 2, embed=lambda texts: np.array([[t.startswith("engine"), t.startswith("bread")] for t in texts], float))
    asked = {"corpus", "vocab", "document_term_matrix", "document_topic_matrix", "topic_term_matrix", "document_representation", "transform", "topic_names", "topic_positions", "word_positions", "document_positions"}
    for data, N in ((found.prepare_topic_data(TEXTS), 20), (found.prepare_topic_data(["engine oil", "bread and flour"]), 2)):
        k, V = len(found), len(found.vocabulary)
        assert set(data) == asked and len(data["topic_names"]) == k and len(data["corpus"]) == N
        assert data["document_term_matrix"].shape == (N, V) and data["document_topic_matrix"].shape == (N, k) and data["topic_term_matrix"].shape == (k, V)
        assert (data["topic_term_matrix"] >= 0).all() and np.allclose(data["document_topic_matrix"].sum(1), 1) and data["document_representation"].shape == (N, 2)
        assert data["transform"](["engine"]).shape == (1, k)
    with pytest.raises(ValueError, match="pass embed="): find_topics(VECTORS, TEXTS, 2).transform(["engine"])

def test_public_names(): assert lg.find_topics is find_topics and lg.Topics.__name__ == "Topics"
