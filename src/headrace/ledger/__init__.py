"""The books: what every stage took in, put out and set aside."""
