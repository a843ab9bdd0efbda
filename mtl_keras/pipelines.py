"""What all `tf.data` pipelines have in common."""


def without_autotuning(dataset):
    """The data set with the parallelism that it starts with, a thread a core.

    The thread that tunes sleeps between two looks, twice as long each time and up to
    a minute, and an iterator is not let go before it wakes: the end of every run
    would wait for it (seen in TensorFlow 2.21).
    """
    import tensorflow as tf  # here alone: who imports this may have to do without

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
