"""An HTTP server on the SavedModels of one model: `python -m alignseg_tf serve savedmodels/NAME`.

server       start, signals, stop
settings     limits and times, and the command line
connections  slow and silent connections
app          the application: what every request passes, and the files of pages
routes       what can be asked for
service      what all requests share: the way of a request's body, picture and answer
batching     the queue in front of TensorFlow
models       versions of the model, and the switch to a new one
pictures     from the bytes of a request to a picture, within limits
answers      forms of an answer
refusals     why a request is not served
monitoring   numbers for Prometheus
schemas      what the OpenAPI document says of bodies
"""
