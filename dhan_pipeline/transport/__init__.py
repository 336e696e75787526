"""Between capture and writers: journal blocks on their way through RabbitMQ."""
