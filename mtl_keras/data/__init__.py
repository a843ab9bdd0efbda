"""What there is to learn from: files, records of them, and `tf.data` pipelines."""
