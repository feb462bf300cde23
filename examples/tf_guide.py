"""The examples of TensorFlow's guide to Saver: a list, a dict, a look into the file, values swapped from it."""

import os
import tempfile

import torchsaver as ts

directory = tempfile.mkdtemp()

with ts.Collection():
    v1 = ts.Variable(1.0, name="v1")
    v2 = ts.Variable(2.0, name="v2")

    # torchsaver: a list of variables is saved under their names
    prefix = ts.Saver([v1, v2]).save(os.path.join(directory, "by_name.ckpt"))
    print("a list:", ts.list_variables(prefix))

    # torchsaver: a dict says under which key each value goes
    saver = ts.Saver({"variable_1": v1, "variable_2": v2})
    prefix = saver.save(os.path.join(directory, "model.ckpt"), global_step=1000)
    print("a dict:", ts.list_variables(prefix))
    print("latest:", os.path.basename(ts.latest_checkpoint(directory)))

    # torchsaver: inspect the file without the variables
    ts.print_tensors_in_checkpoint_file(prefix, all_tensors=True)

    # torchsaver: the same dict, crossed, swaps the values when they are restored
    report = ts.Saver({"variable_1": v2, "variable_2": v1}).restore(prefix)
    print("restored:", ", ".join(report.restored), "of step", report.global_step)
    print("swapped from the file:", v1.item(), v2.item())
    assert (v1.item(), v2.item()) == (2.0, 1.0)
