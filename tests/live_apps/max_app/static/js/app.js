document.title = "é " + document.title;
fetch("../model/labels").then((answer) => answer.json()).then(({ labels }) => {
  document.querySelector("output").textContent = labels.map((label) => label.name).join(", ");
});
const form = new FormData();
form.append("image", new Blob(["pixels"], { type: "image/png" }), "a.png");
fetch("../model/predict", { method: "POST", body: form }).then((answer) => answer.json()).then(({ predictions }) => {
  document.querySelector("p").textContent = `predicted of ${predictions[0]} bytes`;
});
