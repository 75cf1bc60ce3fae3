"""What Lightning's Trainer saves: weights under `state_dict`, optimizer states and hyperparameters beside them."""

import logging
import warnings
from argparse import Namespace

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from fixture import Fixtures

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
FIXTURES = Fixtures(f"torch.load(weights_only=False) of torch {torch.__version__.split('+')[0]}")


class Model(lightning.LightningModule):
    def __init__(self, args):
        super().__init__()
        self.save_hyperparameters()
        self.save_hyperparameters(args)
        self.model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))

    def training_step(self, batch, _):
        return self.model(batch[0]).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def main():
    torch.manual_seed(7)
    data = torch.utils.data.TensorDataset(torch.randn(8, 3))
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(dirpath="/checkpoints", save_top_k=0)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(Namespace(lr=0.01, layers=[3, 2, 1], name="tiny")), torch.utils.data.DataLoader(data, 4))
    path = FIXTURES.path("trainer.ckpt")
    trainer.save_checkpoint(path)
    loaded = torch.load(path, weights_only=False)
    assert loaded["optimizer_states"] and isinstance(loaded["hyper_parameters"]["args"], Namespace)
    FIXTURES.expect("trainer.ckpt", "Trainer.save_checkpoint after an epoch", loaded)


main()
