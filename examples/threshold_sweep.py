"""Which weights does a trained model really need? Twenty lines for a notebook: one vmapped call tries 12 thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import jaxprune as jp

digits = load_digits()
images, labels = digits.data.astype(np.float32) / 16, digits.target
model = LogisticRegression(max_iter=200).fit(images[:1000], labels[:1000])
params = {"kernel": jnp.asarray(model.coef_.T, jnp.float32), "bias": jnp.asarray(model.intercept_, jnp.float32)}


def evaluate(threshold):
    pruned, masks = jp.threshold_prune(params, threshold)
    right = jnp.argmax(images[1000:] @ pruned["kernel"] + pruned["bias"], axis=-1) == labels[1000:]
    return jp.masks.sparsity_of(masks, params), right.mean()


thresholds = jnp.linspace(0, 1.1, 12)
for threshold, sparsity, accuracy in zip(thresholds, *jax.jit(jax.vmap(evaluate))(thresholds), strict=True):
    print(f"threshold {threshold:.2f}   sparsity {sparsity:6.1%}   test accuracy {accuracy:.1%}")
